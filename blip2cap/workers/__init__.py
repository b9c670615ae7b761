"""Worker processes of one run: a process for each GPU, or for a few cores each; rows in order, as of one process."""
