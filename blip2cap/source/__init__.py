"""Inputs (folders, files, archives, tables, URLs, lists of paths) -> ImageRef."""
