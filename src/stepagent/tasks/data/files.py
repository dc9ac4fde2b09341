"""Where the data of tasks lies, and how records are read from files that others made.

Every task with data has a folder under the user's cache (or `STEPAGENT_TASK_DATA`), which
`stepagent download` fills from the task's `TaskData`.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import JsonValue

from stepagent.files.cache import cache_folder
from stepagent.tasks.base import TaskDataError
from stepagent.tasks.data.limited_reader import Content, content, damaged


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file of the official data."""

    url: str
    file: str
    """Its name on disk."""
    sha256: str | None = None
    """None where the publisher states none: what arrives is then checked only by reading it."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What was made of the official files."""

    counts: dict[str, int]
    """Records by kind, e.g. `{"train": 500, "dev": 100}`."""
    read: tuple[Path, ...]
    """The files they come from; their hashes go into the manifest."""
    skipped: dict[str, int]
    """Records left out by reason, with `skip_invalid`; without it the first one is an error.

    Also files that cannot be read, where nothing says that they belong to the task.
    """


class Prepare(Protocol):
    """Makes what a task reads of the official files anywhere below `source`."""

    def __call__(self, source: Path, out: Path, *, skip_invalid: bool) -> Prepared:
        """Writes into the new folder `out`; raises `TaskDataError` if nothing usable is found."""
        ...


@dataclass(frozen=True)
class TaskData:
    """Where the data of a task comes from, and how it becomes what the task reads."""

    sources: tuple[Source, ...]
    prepare: Prepare


def data_folder(task: str) -> Path:
    """The folder of a task's data; it may not be there yet."""
    home = os.environ.get("STEPAGENT_TASK_DATA")
    if home:
        return Path(home) / task
    return cache_folder() / "data" / task


def required(task: str, file: str) -> Path:
    """A file of a task's data; raises `TaskDataError` with the command that gets it."""
    path = data_folder(task) / file
    if not path.exists():
        raise TaskDataError(
            f"{path}: no data of {task}; get it with: stepagent download {task} "
            f"(or, from files on disk, stepagent download {task} --from FOLDER)"
        )
    return path


def read_text(path: Path) -> str:
    """The text of a file, compressed if its name ends in .gz; raises `TaskDataError`."""
    with content(path) as found:
        try:
            return found.all().decode("utf-8")
        except UnicodeDecodeError as error:
            raise damaged(str(path), error) from None


def read_json(path: Path) -> Any:
    """A JSON file, compressed or not."""
    return parsed(read_text(path), str(path))


def read_records(path: Path) -> Iterator[tuple[str, dict[str, JsonValue]]]:
    """Objects of a JSON list or of JSON lines, each with its place for messages: `FILE:3`."""
    text = read_text(path)
    if text.lstrip()[:1] == "[":
        for number, record in enumerate(parsed(text, str(path)), start=1):
            yield f"{path}: record {number}", _object(record, f"{path}: record {number}")
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", _object(parsed(line, str(path), number), f"{path}:{number}")


def records_of(found: Content) -> Iterator[tuple[str, Any]]:
    """The values of a JSON list, one at a time, for files that do not fit into memory.

    Each comes with its place for messages: `FILE: record 3`. Raises `TaskDataError`.
    """
    import ijson  # a package of the extras of those who call this

    try:
        values = ijson.items(_Records(found), "item", use_float=True)
        for number, value in enumerate(values, start=1):
            found.begin_record()
            yield f"{found.name}: record {number}", value
    except (ijson.JSONError, ValueError, RecursionError) as error:
        raise damaged(found.name, error) from None


class _Records:
    """What ijson reads from."""

    def __init__(self, found: Content) -> None:
        self.read = found.of_records


def parsed(text: str | bytes, name: str, first_line: int = 1) -> Any:
    """What the JSON says that begins at this line of the file; `TaskDataError` if it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line, reason = first_line + error.lineno - 1, error.msg
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond all limits
        line, reason = first_line, str(error)
    raise TaskDataError(f"{name}:{line}: not JSON, is the file whole? {reason}")


def _object(record: JsonValue, place: str) -> dict[str, JsonValue]:
    if not isinstance(record, dict):
        raise TaskDataError(f"{place}: expected an object, got {type(record).__name__}")
    return record
