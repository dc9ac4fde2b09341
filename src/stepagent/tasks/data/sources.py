"""Where the data of a task comes from, how it is prepared, and the folder where it is stored.

Every task with data has a folder in the user's cache (or in `STEPAGENT_TASK_DATA`), which
`stepagent download` fills as the task's `TaskData` describes.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stepagent.files.cache import cache_folder
from stepagent.tasks.base import TaskDataError


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file of the official data."""

    url: str
    file: str
    """Its name on disk."""
    sha256: str | None = None
    """Published hash; None if there is none, and the file is then checked only by reading it."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Summary of preparing a task's data from the official files."""

    counts: dict[str, int]
    """Number of records by kind, e.g. `{"train": 500, "dev": 100}`."""
    read: tuple[Path, ...]
    """The files that were used; their hashes go into the manifest."""
    skipped: dict[str, int]
    """Number of invalid records by reason, with `skip_invalid`; without it the first is an error.

    Unreadable files that may not belong to the task at all are counted here too.
    """


class Prepare(Protocol):
    """Converts the official files, found anywhere below `source`, into what the task reads."""

    def __call__(self, source: Path, out: Path, *, skip_invalid: bool) -> Prepared:
        """Writes into the new folder `out`; raises `TaskDataError` if nothing usable is found."""
        ...


@dataclass(frozen=True)
class TaskData:
    """Where the data of a task comes from, and how it is prepared for the task."""

    sources: tuple[Source, ...]
    prepare: Prepare


def data_folder(task: str) -> Path:
    """The folder of a task's data, which may not exist yet."""
    home = os.environ.get("STEPAGENT_TASK_DATA")
    if home:
        return Path(home) / task
    return cache_folder() / "data" / task


def required(task: str, file: str) -> Path:
    """Path of a file of a task's data; `TaskDataError` says how to get it if it is missing."""
    path = data_folder(task) / file
    if not path.exists():
        raise TaskDataError(
            f"{path}: the data of {task} is missing; run: stepagent download {task} "
            f"(with files on disk: stepagent download {task} --from FOLDER)"
        )
    return path
