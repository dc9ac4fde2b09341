"""ALFWorld, text only; `task.py` is where to begin."""
