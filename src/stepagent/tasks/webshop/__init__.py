"""WebShop; start reading in `task.py`."""
