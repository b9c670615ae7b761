"""How fast a model runs here (stages, sweep), against what the machine allows (machine, work) and a peer (baseline)."""
