"""Child processes, and how a signal ends a command in time."""
