"""Training: scenes to batches (data), the model (tiny), its tokenizer, the loop, and how right it is (accuracy)."""
