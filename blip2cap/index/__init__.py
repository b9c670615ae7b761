"""An index of images on disk: built, brought up to date, and searched by the vectors of texts or images."""
