"""Mind2Web; `task.py` is where to begin."""
