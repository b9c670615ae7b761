"""BLIP-2 checkpoints: found and checked (checkpoint), loaded (load), images encoded and text generated (blip2)."""
