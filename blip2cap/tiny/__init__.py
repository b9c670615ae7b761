"""The model inside the package, and the scenes that it knows."""
