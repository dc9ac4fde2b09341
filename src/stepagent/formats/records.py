"""Records of other formats: how they are checked, and what a trajectory holds beyond them.

What a format has no field for stands in its record under `stepagent`, and only what cannot be told
from the rest of the record; with it, a trajectory that was exported is imported again as it was.
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
    """A record cannot be a trajectory, or the reverse; the message says what was expected."""


@dataclass
class Notes:
    """What an import made of the records of a file, beside their trajectories."""

    dropped: Counter[str] = field(default_factory=Counter)
    """How often something was left out, by what it is."""
    renamed: Counter[str] = field(default_factory=Counter)
    """How often something got another name, as `old to new`."""
    num_systems: int = 0
    """Records that begin with a system message."""

    def add(self, other: "Notes") -> None:
        """Takes in what was noted of a further record."""
        self.dropped += other.dropped
        self.renamed += other.renamed
        self.num_systems += other.num_systems


class JSON(Record, extra="allow"):
    """Any object."""


class Dumped(Record):
    """An object as a program dumped it: fields that are null, or unknown and empty, say nothing."""

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
    """A step's texts, where they cannot be told apart in the text of its message."""

    thought: str
    action: str


class Extras(Record):
    """Fields of a trajectory that its record in another format does not show."""

    task: NonEmpty | None = None
    tools: list[dict[str, JsonValue]] = Field(default_factory=list)
    score: Annotated[float, Field(ge=0, le=100)] | None = None
    success: bool | None = None
    truncated: bool = False
    rewards: list[float | None] = Field(default_factory=list)
    """One for each step, if any step has one."""
    instruction_chars: int | None = None
    """Where the instruction ends in the opening text, if that is not where it would be cut."""
    steps: dict[str, StepTexts] = Field(default_factory=dict)
    """By the index of the step."""
    metadata: dict[str, JsonValue] = Field(default_factory=dict)

    def field(self) -> dict[str, JsonValue]:
        """The record's field that holds them; nothing if there is nothing to hold."""
        held = self.model_dump(mode="json", exclude_defaults=True)
        return {KEY: held} if held else {}


def checked(record: JsonValue, record_type: type[R], notes: Notes | None = None) -> R:
    """The record as its type; what is wrong with it is a `FormatError`."""
    try:
        return record_type.model_validate(record, context=notes)
    except ValidationError as error:
        raise FormatError(problem_of(error, record_type)) from None


def checked_trajectory(**fields: Any) -> Trajectory:
    """The trajectory of these fields; what is wrong with them is a `FormatError`."""
    return checked(fields, Trajectory)


def read_own(
    record: dict[str, JsonValue], name: str, task: str, notes: Notes | None = None
) -> Trajectory:
    """The trajectory of a record that is one already, so that every command reads our own files."""
    parsed = parse(json.dumps(record).encode() + b"\n", Trajectory)
    if isinstance(parsed, str):
        raise FormatError(parsed)
    return parsed


class _Wrapped(Record):
    """A value that is not an object, so that it can be read as a record."""

    value: JsonValue


def from_text(text: str) -> JsonValue:
    """What JSON text stands for; a `FormatError` says why it is none."""
    line = text.strip().encode(errors="surrogatepass")
    if line.startswith(b"{"):
        parsed = parse(line + b"\n", JSON)
        if not isinstance(parsed, str):
            return dict(parsed.model_extra or {})
        raise FormatError(parsed.split("; expected")[0])
    wrapped = parse(b'{"value":%b}\n' % line, _Wrapped)
    if isinstance(wrapped, str):
        # A column would count what the text was wrapped in.
        raise FormatError(re.sub(r" at column \d+", "", wrapped).split("; expected")[0])
    return wrapped.value


def id_of(value: JsonValue, field: str) -> str | None:
    """An id, which may be a number; None if there is none."""
    match value:
        case None | str():
            return value
        case int() if not isinstance(value, bool):
            return str(value)
        case _:
            raise FormatError(f"{field}: expected text or a whole number, got {shown(value)}")
