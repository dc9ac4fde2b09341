"""A small model made from scratch, and its pretraining."""
