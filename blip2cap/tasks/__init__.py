"""Tasks: the prompts of each image, and the columns of the answers."""
