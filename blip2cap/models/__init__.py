"""Models behind one interface: names, checkpoints, families."""
