"""What the method runs on: forward passes, generation and parameter updates."""
