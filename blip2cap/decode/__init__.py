"""ImageRef -> bytes -> the form in which the model takes images, or an ImageError."""
