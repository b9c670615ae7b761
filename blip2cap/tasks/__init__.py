"""What is asked about an image, and the columns of the answer."""
