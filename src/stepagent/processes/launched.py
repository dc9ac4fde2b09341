"""Who started this process: torchrun or Ray, together with others, or somebody else, alone.

Imports nothing slow: the command line asks before it imports torch.
"""

import os

RAY = "STEPAGENT_RAY"
"""Environment variable that `processes/ray_workers.py` sets in the processes that Ray starts."""

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells each process; schedulers set some of these for programs of any kind."""


class Lost(RuntimeError):
    """Another process of the same work was lost; the message is one line."""


def is_by_ray() -> bool:
    """Whether Ray started this process and has joined it with the others."""
    return RAY in os.environ


def size() -> int:
    """How many processes were started together; 1 for a process that was started alone."""
    if not all(os.environ.get(name) for name in _NEEDED):
        return 1
    given = os.environ["WORLD_SIZE"]
    return int(given) if given.isdecimal() else 1


def number() -> int:
    """The number of this process among them, from 0."""
    return int(os.environ["RANK"]) if size() > 1 else 0
