"""Rendering: dialogues to token ids by a model's chat template, and back to text."""
