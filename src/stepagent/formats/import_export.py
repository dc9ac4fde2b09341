"""Reads and writes files in other projects' formats; the format is recognised.

A file may be JSON lines, a JSON list of objects, a single object or Parquet, and gzip-compressed.
All its records have one format, recognised by the fields of the first valid record.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue
from pydantic_core import from_json

from stepagent.console.printable import shown
from stepagent.formats.atif import read_atif, write_atif
from stepagent.formats.field_aliases import is_messages, refusal
from stepagent.formats.knowagent import read_knowagent
from stepagent.formats.messages import read_messages, write_openai, write_trl
from stepagent.formats.parquet import is_parquet, read_rows
from stepagent.formats.records import JSON, FormatError, Notes, read_own
from stepagent.formats.sharegpt import read_sharegpt, write_agentgym, write_eto
from stepagent.formats.webshop import read_webshop
from stepagent.trajectories import (
    NotStrictJson,
    TrajectoryError,
    check_strict,
    error_at,
    lines_of,
    parse,
    write_lines,
)
from stepagent.types import Trajectory

Fields = dict[str, JsonValue]

READERS: dict[str, Callable[[Fields, str, str, Notes | None], Trajectory]] = {
    "messages": read_messages,
    "openai": read_messages,
    "eto": read_sharegpt,
    "agentgym": read_sharegpt,
    "atif": read_atif,
    "webshop": read_webshop,
    "knowagent": read_knowagent,
    "trajectories": read_own,
}
"""Each takes a record, an id and a task for records without their own, and the notes to fill."""

WRITERS: dict[str, Callable[[Trajectory], Fields]] = {
    "messages": write_trl,
    "openai": write_openai,
    "eto": write_eto,
    "agentgym": write_agentgym,
    "atif": write_atif,
}


@dataclass(frozen=True, kw_only=True)
class Imported:
    """The trajectories of an imported file, in its order, and what was skipped or changed."""

    format: str
    """The format that was given or recognised."""
    trajectories: tuple[Trajectory, ...]
    places: str
    """What records are counted by: `line` or `record`."""
    rejected: dict[str, list[int]]
    """Reasons, with the numbers of the lines or records that were skipped for them."""
    notes: Notes
    """What was dropped or renamed in the imported records."""


def read_foreign(
    path: Path, *, format: str | None = None, task: str | None = None, skip_invalid: bool = False
) -> Imported:
    """Reads all trajectories of a file in another project's format; there is at least one.

    `format` is a key of `READERS`; None recognises it. `task` names the task of records without
    one; the default is the file's name. Repeated ids are numbered: `id#2`. The first invalid record
    raises `TrajectoryError`; with `skip_invalid`, invalid records are listed in the result instead.
    """
    # A file name may contain bytes that are not valid UTF-8.
    name = os.fsencode(path.name).decode(errors="replace").removesuffix(".gz")
    stem = name.rpartition(".")[0] or name
    places, records = _records(path)
    if any(_is_page(record) for _, record in records):
        records = _session(records, stem)
    trajectories: list[Trajectory] = []
    rejected: dict[str, list[int]] = {}
    all_notes, ids = Notes(), _Ids()
    for number, record in records:
        notes = Notes()
        try:
            if isinstance(record, str):
                raise FormatError(record)
            format = format or _recognised(record)
            trajectory = READERS[format](record, f"{stem}/{number}", task or stem, notes)
            trajectories.append(ids.numbered(trajectory, notes))
            all_notes.add(notes)
        except FormatError as error:
            # If the format is unknown, no other record can be read either.
            if not skip_invalid or (format is None and not isinstance(record, str)):
                raise _error_in(path, places, number, str(error)) from None
            rejected.setdefault(str(error), []).append(number)
    if not records:
        raise error_at(path, f"empty; expected records in one of the formats {_names()}", 1)
    if not trajectories or format is None:
        reason, (number, *_) = next(iter(rejected.items()))
        reason = f"none of its {len(records)} records is valid; {reason}"
        raise _error_in(path, places, number, reason)
    return Imported(
        format=format,
        trajectories=tuple(trajectories),
        places=places,
        rejected=rejected,
        notes=all_notes,
    )


class _Ids:
    """The ids of a file so far; makes repeated ones unique."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()

    def numbered(self, trajectory: Trajectory, notes: Notes) -> Trajectory:
        """The trajectory under a unique id."""
        id = trajectory.id
        while self._count[id]:
            self._count[trajectory.id] += 1
            id = f"{trajectory.id}#{self._count[trajectory.id]}"
        self._count[id] += 1
        if id == trajectory.id:
            return trajectory
        notes.renamed["repeated ids to id#2, id#3, ..."] += 1
        return trajectory.model_copy(update={"id": id})


def write_foreign(
    path: Path, trajectories: Iterable[Trajectory], format: str, *, replace: bool = True
) -> None:
    """Writes one record per line in a format of `WRITERS`, atomically; raises `TrajectoryError`."""

    def line(trajectory: Trajectory) -> str:
        try:
            return json.dumps(WRITERS[format](trajectory), ensure_ascii=False)
        except FormatError as error:
            raise error_at(path, f"trajectory {shown(trajectory.id)}: {error}") from None

    write_lines(path, map(line, trajectories), replace=replace)


def _names() -> str:
    return ", ".join(READERS)


def _error_in(path: Path, places: str, number: int, reason: str) -> TrajectoryError:
    if places == "line":
        return error_at(path, reason, number)
    return error_at(path, f"record {number}: {reason}")


def _recognised(record: Fields) -> str:
    """The format of a record, by its fields; raises `FormatError` if there is none."""
    match record:
        case {"schema_version": str(version)} if version.startswith("ATIF"):
            return "atif"
        case {"conversations": list(turns)}:
            flagged = any(isinstance(turn, dict) and turn.get("loss") is not None for turn in turns)
            return "agentgym" if flagged or "item_id" in record else "eto"
        case {"conversations": _}:
            return "agentgym" if "item_id" in record else "eto"
        case _ if is_messages(record):
            return "messages"
        case {"session": _, "steps": _}:
            return "webshop"
        case {"input": str(), "output": str(), **rest} if "instruction" not in rest:
            return "knowagent"
        case {"id": _, "task": _, "instruction": _, "steps": _}:
            return "trajectories"
    raise FormatError(refusal(record, _names()))


def _is_page(record: Fields | str) -> bool:
    return isinstance(record, dict) and {"page", "url", "goal"} <= record.keys()


def _session(records: list[tuple[int, Fields | str]], stem: str) -> list[tuple[int, Fields | str]]:
    """Joins the pages of a WebShop log into one session; damaged lines are returned instead."""
    pages: list[JsonValue] = [record for _, record in records if isinstance(record, dict)]
    faults = [(number, record) for number, record in records if isinstance(record, str)]
    return [*faults] or [(1, {"session": stem, "steps": pages})]


def _records(path: Path) -> tuple[str, list[tuple[int, Fields | str]]]:
    """`line` or `record`, and each record with its number, or the reason why it is invalid."""
    if is_parquet(path):
        return "record", [(number, _fields(row)) for number, row in read_rows(path)]
    lines = list(lines_of(path))
    whole = b"".join(line for _, line in lines if isinstance(line, bytes))
    damaged = [(number, line) for number, line in lines if isinstance(line, str)]
    if whole.lstrip().startswith(b"["):
        return ("line", [*damaged]) if damaged else ("record", _listed(path, whole))
    records = [(number, _fields(line)) for number, line in lines]
    if len(lines) > 1 and not damaged and isinstance(records[0][1], str):
        record = _fields(whole)  # perhaps a single object spread over many lines
        if isinstance(record, dict):
            return "record", [(1, record)]
    return "line", records


def _fields(line: bytes | str) -> Fields | str:
    parsed = line if isinstance(line, str) else parse(line, JSON)
    return parsed if isinstance(parsed, str) else dict(parsed.model_extra or {})


def _listed(path: Path, whole: bytes) -> list[tuple[int, Fields | str]]:
    try:
        entries = from_json(whole, allow_inf_nan=False)
        check_strict(whole.decode())
    except NotStrictJson as error:
        raise error_at(path, str(error)) from None
    except ValueError as error:
        raise error_at(path, f"not JSON ({error}); expected a list of objects") from None
    return [
        (number, entry if isinstance(entry, dict) else f"expected an object, got {shown(entry)}")
        for number, entry in enumerate(entries, start=1)
    ]
