"""Which images there are: folders, files, lists of paths."""
