"""ScienceWorld; start reading in `task.py`."""
