"""The embedded model, and the scenes that it is trained on."""
