"""One run, whatever its output: from options to an outcome. Prints nothing."""
