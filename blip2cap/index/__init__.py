"""Indexes of images that are searched by text and by image."""
