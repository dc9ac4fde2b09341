"""Validates records of other formats, and keeps the fields that those formats lack.

Whatever a format has no field for, and the rest of the record does not imply, is stored in the
record under `stepagent`, so that importing an exported trajectory restores it exactly.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from pydantic import Field, JsonValue, ValidationError, ValidationInfo, model_validator

from stepagent.console.printable import printable, shown
from stepagent.trajectories import parse, problem_of
from stepagent.types import NonEmpty, Record, Trajectory

R = TypeVar("R", bound=Record)

KEY = "stepagent"
"""The field of a record that holds the extras."""


class FormatError(ValueError):
    """A record cannot be read as a trajectory, or a trajectory cannot be written as a record."""


@dataclass
class Notes:
    """What an import dropped or renamed in the records of a file."""

    dropped: Counter[str] = field(default_factory=Counter)
    """How often each kind of content was left out."""
    renamed: Counter[str] = field(default_factory=Counter)
    """How often something was renamed, by `old to new`."""
    num_systems: int = 0
    """Number of records that begin with a system message."""

    def add(self, other: "Notes") -> None:
        """Adds the notes of another record."""
        self.dropped += other.dropped
        self.renamed += other.renamed
        self.num_systems += other.num_systems


class JSON(Record, extra="allow"):
    """Any object."""


class Dumped(Record):
    """An object dumped by a program: null fields, and unknown empty ones, count as absent."""

    @model_validator(mode="before")
    @classmethod
    def _without_empty_fields(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, dict):
            return value
        known = {field.alias or name: field for name, field in cls.model_fields.items()}
        kept = {}
        for key, entry in value.items():
            if key not in known and (entry is None or entry in ("", [], {})):
                if isinstance(info.context, Notes):
                    info.context.dropped[f"empty {printable(key)}"] += 1
            elif key not in known or entry is not None or known[key].is_required():
                kept[key] = entry
        return kept


class StepTexts(Record):
    """Thought and action of a step, for messages in which the two cannot be told apart."""

    thought: str
    action: str


class Extras(Record):
    """Fields of a trajectory for which a record in another format has no place."""

    task: NonEmpty | None = None
    tools: list[dict[str, JsonValue]] = Field(default_factory=list)
    score: Annotated[float, Field(ge=0, le=100)] | None = None
    success: bool | None = None
    truncated: bool = False
    rewards: list[float | None] = Field(default_factory=list)
    """One for each step, if any step has one."""
    instruction_chars: int | None = None
    """Length of the instruction within the opening text, if the usual split would be wrong."""
    steps: dict[str, StepTexts] = Field(default_factory=dict)
    """Texts by the index of the step."""
    metadata: dict[str, JsonValue] = Field(default_factory=dict)

    def field(self) -> dict[str, JsonValue]:
        """The field to add to a record; empty if there are no extras."""
        extras = self.model_dump(mode="json", exclude_defaults=True)
        return {KEY: extras} if extras else {}


def checked(record: JsonValue, record_type: type[R], notes: Notes | None = None) -> R:
    """Validates a record as the given type; raises `FormatError`."""
    try:
        return record_type.model_validate(record, context=notes)
    except ValidationError as error:
        raise FormatError(problem_of(error, record_type)) from None


def checked_trajectory(**fields: Any) -> Trajectory:
    """The trajectory with these fields; raises `FormatError`."""
    return checked(fields, Trajectory)


def read_own(
    record: dict[str, JsonValue], name: str, task: str, notes: Notes | None = None
) -> Trajectory:
    """Reads a record in our own format, so that every command that imports reads our files too."""
    parsed = parse(json.dumps(record).encode() + b"\n", Trajectory)
    if isinstance(parsed, str):
        raise FormatError(parsed)
    return parsed


class _Wrapped(Record):
    """Wraps a value that is not an object, so that it can be validated as a record."""

    value: JsonValue


def from_text(text: str) -> JsonValue:
    """The value of a JSON text; raises `FormatError` if it is invalid."""
    line = text.strip().encode(errors="surrogatepass")
    if line.startswith(b"{"):
        parsed = parse(line + b"\n", JSON)
        if not isinstance(parsed, str):
            return dict(parsed.model_extra or {})
        raise FormatError(parsed.split("; expected")[0])
    wrapped = parse(b'{"value":%b}\n' % line, _Wrapped)
    if isinstance(wrapped, str):
        # The column would be off by the wrapper.
        raise FormatError(re.sub(r" at column \d+", "", wrapped).split("; expected")[0])
    return wrapped.value


def id_of(value: JsonValue, field: str) -> str | None:
    """An id as text; it may be a whole number, or None."""
    match value:
        case None | str():
            return value
        case int() if not isinstance(value, bool):
            return str(value)
        case _:
            raise FormatError(f"{field}: expected text or a whole number, got {shown(value)}")
