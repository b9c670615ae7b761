"""A model in training: from a checkpoint to a checkpoint."""
