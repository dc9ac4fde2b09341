"""The folder in the user's cache where StepAgent keeps downloaded and converted files."""

import os
from pathlib import Path


class NoCache(RuntimeError):
    """The user has no cache folder; the message is one line."""


def cache_folder() -> Path:
    """StepAgent's folder in the user's cache, which may not exist yet.

    Raises `NoCache` for a user without a home folder, such as a bare user id in a container.
    """
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "stepagent"
    try:
        return Path.home() / ".cache" / "stepagent"
    except RuntimeError:
        raise NoCache(
            "this user has no home folder for a cache; set XDG_CACHE_HOME, or STEPAGENT_TASK_DATA "
            "for task data"
        ) from None
