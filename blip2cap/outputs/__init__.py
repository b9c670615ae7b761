"""Where rows go: a journal that survives everything, or a stream."""
