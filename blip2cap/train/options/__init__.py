"""Options of training, without torch."""
