"""Training: scenes to batches (data), the model (tiny), its tokenizer, the loop, and accuracy on unseen scenes."""
