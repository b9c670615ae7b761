"""Models behind one interface: checkpoints, families, loading."""
