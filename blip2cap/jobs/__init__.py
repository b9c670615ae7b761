"""One run with any output: from options to an outcome. Prints nothing."""
