"""Rows in the formats of other tools: one module for each family of formats, one `Writer` for each format."""
