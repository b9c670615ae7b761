"""The engine: reads ahead, batches, runs the model, and returns rows in order. Knows no files and no model family."""
