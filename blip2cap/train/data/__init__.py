"""Data of a training: readers, mixing, datasets, collators, checks."""
