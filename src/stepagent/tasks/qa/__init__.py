"""HotpotQA, 2WikiMultihopQA and MuSiQue; start reading in `task.py`."""
