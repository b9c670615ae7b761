"""A run on several machines: parts of one output, made by the actors of a Ray cluster."""
