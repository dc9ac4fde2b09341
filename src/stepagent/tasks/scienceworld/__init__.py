"""ScienceWorld; `task.py` is where to begin."""
