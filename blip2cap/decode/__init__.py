"""The bytes of one image -> RGB pixels as the model takes them, or what is wrong with it."""
