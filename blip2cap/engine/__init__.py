"""Requests through a model: read ahead, batch, ask, put rows back in order. Knows no files and no model family."""
