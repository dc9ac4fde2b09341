"""ALFWorld, text only; start reading in `task.py`."""
