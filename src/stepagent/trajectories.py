"""Reads, validates and writes files of trajectories: one JSON object per line, UTF-8.

The files come from outside, so every error is one printable line that names the file and line, what
is wrong and what was expected. Blank lines, CRLF line ends and a byte-order mark at the start are
accepted. A file whose name ends in `.gz` is compressed.
"""

import gzip
import json
import math
import os
import re
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from stepagent.console.printable import printable, shown
from stepagent.files.atomic import atomic_write
from stepagent.files.lines import Unreadable, read_lines
from stepagent.types import Record, Trajectory

R = TypeVar("R", bound=Record)

_EXPECTED = {
    "string_too_short": "non-empty text",
    "string_pattern_mismatch": "non-empty text",
    "string_type": "text",
    "float_type": "a number",
    "int_type": "a whole number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "an object",
    "too_short": "at least one entry",
    "less_than_equal": "a number of at most {le:g}",
    "greater_than_equal": "a number of at least {ge:g}",
}
"""What was expected, by pydantic's type of error; the braces are filled with the violated limit."""


class TrajectoryError(ValueError):
    """A file of records cannot be used; the message is one line, `FILE:LINE: REASON`."""


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A line that was skipped, counted from 1, and why."""

    line_number: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class ReadResult:
    """The valid trajectories of a file, in its order, and the lines that were skipped."""

    trajectories: tuple[Trajectory, ...]
    rejected: tuple[Rejected, ...] = ()


def read_trajectories(path: str | Path, *, skip_invalid: bool = False) -> ReadResult:
    """Reads all trajectories of a file; their ids are unique, and there is at least one.

    The first invalid line raises `TrajectoryError`. With `skip_invalid`, invalid lines are listed
    in the result instead, and only a file without any valid line raises an error.
    """
    trajectories: list[Trajectory] = []
    rejected: list[Rejected] = []
    line_of_id: dict[str, int] = {}
    for number, parsed in _parsed_lines(path, Trajectory):
        if isinstance(parsed, Trajectory) and parsed.id in line_of_id:
            first = line_of_id[parsed.id]
            parsed = f"id: {shown(parsed.id)} is already on line {first}; expected unique ids"
        if isinstance(parsed, Trajectory):
            line_of_id[parsed.id] = number
            trajectories.append(parsed)
        elif skip_invalid:
            rejected.append(Rejected(line_number=number, reason=parsed))
        else:
            raise error_at(path, parsed, number)
    if rejected and not trajectories:
        reason = f"none of its {len(rejected)} lines is valid; {rejected[0].reason}"
        raise error_at(path, reason, rejected[0].line_number)
    if not trajectories:
        raise error_at(path, "empty; expected one Trajectory object per line", 1)
    return ReadResult(trajectories=tuple(trajectories), rejected=tuple(rejected))


def read_jsonl(path: str | Path, record_type: type[R]) -> tuple[R, ...]:
    """Reads all records of a file, which may be empty; an invalid line raises `TrajectoryError`."""
    records: list[R] = []
    for number, parsed in _parsed_lines(path, record_type):
        if isinstance(parsed, str):
            raise error_at(path, parsed, number)
        records.append(parsed)
    return tuple(records)


def write_jsonl(path: str | Path, records: Iterable[Record], *, replace: bool = True) -> None:
    """Writes one record per line, atomically: if writing fails, an old file stays as it was."""
    write_lines(path, (record.model_dump_json() for record in records), replace=replace)


def write_lines(path: str | Path, lines: Iterable[str], *, replace: bool = True) -> None:
    """Writes lines atomically, compressed if the file's name ends in `.gz`."""
    with atomic_write(path, replace=replace) as file:
        if Path(path).suffix == ".gz":
            # No name and no time in the header: equal records make equal files.
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as compressed:
                compressed.writelines(line.encode() + b"\n" for line in lines)
        else:
            file.writelines(line.encode() + b"\n" for line in lines)


def _parsed_lines(path: str | Path, record_type: type[R]) -> Iterator[tuple[int, R | str]]:
    """Yields the number of each non-blank line with its record, or why it is invalid."""
    for number, line in lines_of(path):
        yield number, line if isinstance(line, str) else parse(line, record_type)


def lines_of(path: str | Path) -> Iterator[tuple[int, bytes | str]]:
    """Yields each non-blank line with its number; a text in place of a line says what is damaged.

    Raises `TrajectoryError` if the file cannot be read.
    """
    try:
        yield from read_lines(path)
    except Unreadable as error:
        raise error_at(path, str(error), error.line_number) from None


def parse(line: bytes, record_type: type[R]) -> R | str:
    """The record of one line, or a text that says why the line is invalid."""
    try:
        text = line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        return f"byte {error.start + 1} of the line is not UTF-8; expected UTF-8 text"
    try:
        record = record_type.model_validate_json(text)
        check_strict(text)
    except ValidationError as error:
        return problem_of(error, record_type, complete=line.endswith(b"\n"))
    except NotStrictJson as error:
        return str(error)
    return record


def check_strict(text: str) -> None:
    """Raises `NotStrictJson` for repeated keys and non-finite numbers, which pydantic accepts."""
    json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_finite, parse_float=_finite)


def problem_of(error: ValidationError, record_type: type[Record], *, complete: bool = True) -> str:
    """What is wrong with a record, as one printable line: the first problem, and how many more."""
    problems = [
        problem
        for problem in error.errors(include_url=False)
        # Pydantic counts valid entries only, so a single bad entry is also reported as too short.
        if not (problem["type"] == "too_short" and problem["input"])
    ]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return _problem(problems[0], record_type, complete=complete) + more


class NotStrictJson(Exception):
    """JSON that pydantic accepts, but that is ambiguous or outside the standard."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise NotStrictJson(f"field {shown(key)} appears twice; expected each field once")
        fields[key] = value
    return fields


def _finite(number: str) -> float:
    if not math.isfinite(float(number)):
        raise NotStrictJson(f"contains {printable(number)}; expected finite numbers")
    return float(number)


def _problem(problem: ErrorDetails, record_type: type[Record], *, complete: bool) -> str:
    """One of pydantic's errors in plain words, as one printable line."""
    kind, location, value = problem["type"], problem["loc"], problem["input"]
    if kind == "json_invalid":
        fault = re.sub(r" at line \d+ column", " at column", problem["ctx"]["error"])
        if fault.startswith("EOF") and not complete:
            fault = "the last line of the file is truncated"
        return f"not JSON ({fault}); expected one {record_type.__name__} object per line"
    field = "".join(
        f"[{part}]" if isinstance(part, int) else f".{printable(part)}" for part in location
    )
    field = field.removeprefix(".")
    if kind in ("missing", "extra_forbidden"):
        fields = {
            info.alias or name: info
            for name, info in _record_type_at(record_type, location[:-1]).model_fields.items()
        }
        if kind == "extra_forbidden":
            return f"{field}: unknown field; expected only {', '.join(fields)}"
        required = [name for name, info in fields.items() if info.is_required()]
        return f"{field}: missing; expected at least {', '.join(required)}"
    if kind == "model_type":
        expected = f"a {problem['ctx']['class_name']} object"
    else:
        expected = problem["msg"].removeprefix("Input should be ")
        if kind in _EXPECTED:
            expected = _EXPECTED[kind].format(**problem.get("ctx", {}))
    return f"{field}: expected {expected}, got {shown(value)}".removeprefix(": ")


def _record_type_at(record_type: type[Record], location: tuple[int | str, ...]) -> type[Record]:
    """The type of the record at a location within a record of the given type."""
    found: Any = record_type
    for part in location:
        if isinstance(found, type) and issubclass(found, Record):
            found = found.model_fields[str(part)].annotation
        else:  # the values of a dictionary, the entries of a list
            found = typing.get_args(found)[-1 if isinstance(part, str) else 0]
        if type(None) in (choices := typing.get_args(found)):
            found = choices[0]
    return cast(type[Record], found)


def error_at(path: str | Path, reason: str, line_number: int | None = None) -> TrajectoryError:
    """The error that names the file, and the line if one is given."""
    line = "" if line_number is None else f"{line_number}:"
    return TrajectoryError(f"{printable(os.fspath(path), limit=4096)}:{line} {reason}")
