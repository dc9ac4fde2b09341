"""Mind2Web; start reading in `task.py`."""
