"""Reads text and JSON files of task data, whole or one record at a time."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from stepagent.tasks.base import TaskDataError
from stepagent.tasks.data.limited_reader import Content, damaged, open_content


def read_text(path: Path) -> str:
    """Reads a UTF-8 file, compressed if its name ends in .gz; raises `TaskDataError`."""
    with open_content(path) as content:
        try:
            return content.all().decode("utf-8")
        except UnicodeDecodeError as error:
            raise damaged(str(path), error) from None


def read_json(path: Path) -> Any:
    """Reads a JSON file, compressed if its name ends in .gz; raises `TaskDataError`."""
    return parse_json(read_text(path), str(path))


def read_records(path: Path) -> Iterator[tuple[str, dict[str, JsonValue]]]:
    """Yields the objects of a JSON list or of JSON lines, each with its place, e.g. `FILE:3`."""
    text = read_text(path)
    if text.lstrip()[:1] == "[":
        for number, record in enumerate(parse_json(text, str(path)), start=1):
            yield f"{path}: record {number}", _object(record, f"{path}: record {number}")
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            record = parse_json(line, str(path), number)
            yield f"{path}:{number}", _object(record, f"{path}:{number}")


def stream_json_list(content: Content) -> Iterator[tuple[str, Any]]:
    """Yields the values of a JSON list one at a time, for files that do not fit into memory.

    Each comes with its place for messages: `FILE: record 3`. Raises `TaskDataError`.
    """
    import ijson  # optional: only the extras of some tasks include it

    try:
        values = ijson.items(_IjsonSource(content), "item", use_float=True)
        for number, value in enumerate(values, start=1):
            content.begin_record()
            yield f"{content.name}: record {number}", value
    except (ijson.JSONError, ValueError, RecursionError) as error:
        raise damaged(content.name, error) from None


class _IjsonSource:
    """The file-like object that ijson reads from."""

    def __init__(self, content: Content) -> None:
        self.read = content.read_of_record


def parse_json(text: str | bytes, name: str, first_line: int = 1) -> Any:
    """Parses JSON that begins at `first_line` of the file `name`; raises `TaskDataError`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line, reason = first_line + error.lineno - 1, error.msg
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond all limits
        line, reason = first_line, str(error)
    raise TaskDataError(f"{name}:{line}: invalid JSON (incomplete file?): {reason}")


def _object(record: JsonValue, place: str) -> dict[str, JsonValue]:
    if not isinstance(record, dict):
        raise TaskDataError(f"{place}: expected an object, got {type(record).__name__}")
    return record
