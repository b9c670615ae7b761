"""Checkpoints of LAVIS -> checkpoints that transformers and blip2cap load."""
