"""HotpotQA, 2WikiMultihopQA and MuSiQue; `task.py` is where to begin."""
