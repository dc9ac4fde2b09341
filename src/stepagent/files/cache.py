"""Where StepAgent keeps what it has downloaded or converted: the user's cache folder."""

import os
from pathlib import Path


class NoCache(RuntimeError):
    """There is no place for a cache; the message is one line."""


def cache_folder() -> Path:
    """StepAgent's folder in the user's cache; it may not be there yet.

    Raises `NoCache` for a user without a home, such as a container's bare number.
    """
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "stepagent"
    try:
        return Path.home() / ".cache" / "stepagent"
    except RuntimeError:
        raise NoCache(
            "this user has no home folder for a cache; set XDG_CACHE_HOME, or STEPAGENT_TASK_DATA "
            "for data of tasks"
        ) from None
