"""Child processes, and ending a command in time after a signal."""
