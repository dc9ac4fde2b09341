"""The language model: forward passes, generation, adapters and updates over a prefix tree."""
