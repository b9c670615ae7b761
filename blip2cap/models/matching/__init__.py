"""Image-text matching models: scores of texts for images, and vectors of both in one space."""
