"""Rows in the formats that other tools read: one module for each family of formats, one `Writer` for each format."""
