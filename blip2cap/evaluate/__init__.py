"""Scores of captions, answers and searches against references."""
