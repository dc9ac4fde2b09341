"""Reads a run folder into one frozen view, for the report.

Parts that do not exist yet are empty, so an unfinished run can be read at any time. A damaged or
changed file, or a folder that is no run, raises a one-line error. Files that no finished unit wrote
are left out; rows of the unit in progress are kept.
"""

import math
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from markupsafe import Markup
from pydantic import BaseModel, BeforeValidator, ConfigDict, JsonValue, TypeAdapter, ValidationError

from stepagent.experiment import run_folder
from stepagent.experiment.manifest import Units, has_units
from stepagent.experiment.run_folder import (
    CONFIG,
    DEMONSTRATIONS,
    EPISODES,
    HELD_OUT,
    METRICS,
    PRACTICE,
    RESULTS_JSON,
    SUMMARY,
)
from stepagent.experiment.run_json import RunError, read_config, read_rows, shown
from stepagent.files.lines import Unreadable, open_regular
from stepagent.trajectories import TrajectoryError, read_jsonl
from stepagent.types import PracticedStep, Record, Trajectory

S = TypeVar("S")
T = TypeVar("T", bound=Record)
PARTS = (CONFIG, RESULTS_JSON, METRICS, PRACTICE, EPISODES)


class ReportError(ValueError):
    """A run folder cannot be read, or a report cannot be written; the message is one line."""


def _known_number(value: Any) -> Any:
    """Diverged runs write NaN, which is shown as unknown."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_known_number)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Settings(_Part):
    """The settings in config.json."""

    recipe: str = ""
    seed: int | None = None
    created: str = ""
    versions: dict[str, JsonValue] = {}
    protocol: dict[str, JsonValue] = {}
    config: dict[str, JsonValue] = {}
    data: dict[str, JsonValue] = {}


class Result(_Part):
    """One row of results.json: a score from 0 to 100, or a success rate from 0 to 1."""

    method: str
    task: str
    split: str
    metric: str
    mean: Number
    low: Number = None
    high: Number = None
    n: int


@dataclass(frozen=True)
class Metrics:
    """One row of metrics.jsonl; only finite numbers are kept in `values`."""

    stage: str
    round: int
    phase: str
    values: dict[str, float]


@dataclass(frozen=True)
class Practice:
    """Held-out steps practised by a method's policy in one round."""

    method: str
    round: int
    steps: tuple[PracticedStep, ...]


@dataclass(frozen=True)
class Episodes:
    """Evaluation episodes of one method; `round` is None for its final policy."""

    method: str
    split: str
    round: int | None
    trajectories: tuple[Trajectory, ...]


@dataclass(frozen=True, kw_only=True)
class RunView:
    """Everything that the report shows of one run folder."""

    path: Path
    settings: Settings
    results: tuple[Result, ...]
    summary: str
    metrics: tuple[Metrics, ...]
    demonstrations: tuple[Trajectory, ...]
    held_out: tuple[Trajectory, ...]
    """The held-out expert trajectories."""
    practice: tuple[Practice, ...]
    episodes: tuple[Episodes, ...]
    notes: tuple[str, ...]
    """What is missing, what was left out, and whether nothing could be checked."""


def read_run(path: Path) -> RunView:
    """The run in folder `path`, finished or not."""
    if not path.is_dir():
        raise ReportError(f"{shown(path)}: no such folder; expected a run folder")
    if not any((path / part).exists() for part in PARTS):
        raise ReportError(f"{shown(path)}: not a run folder; expected config.json in it")
    config = path / CONFIG
    settings = _parsed(config, Settings) if config.exists() else Settings()
    try:
        units = _units(path)
        finished = set(units.check_rows()) if units else set()
        metrics, cut = _metrics(path / METRICS)
    except RunError as error:
        raise ReportError(str(error)) from None
    found = {name: path / name for name in _names(path)}
    known = {name: file for name, file in found.items() if not units or units.writer(name)}
    notes = [f"no {part} yet" for part in PARTS if not (path / part).exists()]
    notes += [
        f"{name} is left out: no finished unit wrote it" for name in found if name not in known
    ]
    if not units:
        notes.append("written by an earlier version without hashes, so its files are not checked")
    if cut:
        notes.append("the last line of metrics.jsonl is cut off and was left out")
    if units:
        # A stopped method has rows of a unit that was never finished.
        stopped = {name for name, facts in settings.data.items() if "stopped" in _object(facts)}
        last = max(finished, default=0)
        kept = [n in finished or n > last or row.stage in stopped for n, row in metrics]
        if left_out := kept.count(False):
            notes.append(
                f"{left_out} rows of metrics.jsonl are left out: no finished unit wrote them"
            )
        metrics = [row for row, is_kept in zip(metrics, kept, strict=True) if is_kept]
    results, summary = known.get(RESULTS_JSON), known.get(SUMMARY)
    return RunView(
        path=path,
        settings=settings,
        results=tuple(_parsed(results, list[Result])) if results else (),
        summary=_text(summary) if summary else "",
        metrics=tuple(row for _, row in metrics),
        demonstrations=_records(known.get(DEMONSTRATIONS), Trajectory),
        held_out=_records(known.get(HELD_OUT), Trajectory),
        practice=tuple(_practice(known)),
        episodes=tuple(_episodes(known)),
        notes=tuple(notes),
    )


def _units(path: Path) -> Units | None:
    """The finished units, after checking their files; None for a run without hashes."""
    config = read_config(path) if (path / CONFIG).exists() else None
    if config is None:
        if has_units(path):
            raise RunError(f"{shown(path / CONFIG)}: without its hashes; restore it")
        return None
    units = Units(path, config["units"])
    units.check_all(weights=False)
    return units


def _names(path: Path) -> Iterator[str]:
    """Paths, within the run folder, of the files that the report shows."""
    for name in (DEMONSTRATIONS, RESULTS_JSON, SUMMARY):
        if (path / name).exists():
            yield name
    for part in (PRACTICE, EPISODES):
        yield from sorted(f"{part}/{file.name}" for file in (path / part).glob("*.jsonl"))


def _object(value: JsonValue) -> dict[str, JsonValue]:
    return value if isinstance(value, dict) else {}


def _practice(files: Mapping[str, Path]) -> Iterator[Practice]:
    found = ((run_folder.round_of_practice(name), file) for name, file in files.items())
    for number, file in sorted((round_, file) for round_, file in found if round_):
        yield Practice(number.method, number.number, _records(file, PracticedStep))


def _episodes(files: Mapping[str, Path]) -> Iterator[Episodes]:
    for name, file in files.items():
        if panel := run_folder.panel_of_episodes(name):
            yield Episodes(*panel, _records(file, Trajectory))


def _records(path: Path | None, record_type: type[T]) -> tuple[T, ...]:
    try:
        return read_jsonl(path, record_type) if path else ()
    except TrajectoryError as error:
        raise ReportError(str(error)) from None


def _metrics(path: Path) -> tuple[list[tuple[int, Metrics]], bool]:
    """The rows by line, and whether the last line is unfinished."""
    found = read_rows(path)
    faults = list(found.damaged)
    rows: list[tuple[int, Metrics]] = []
    for line, row in found.rows.items():
        try:
            stage, phase, number = row["stage"], row["phase"], int(row["round"])
            values = {
                name: float(value)
                for name, value in row.items()
                if type(value) in (int, float) and math.isfinite(value) and name != "round"
            }
        except (ValueError, KeyError, TypeError, ArithmeticError):
            faults.append(line)
        else:
            rows.append((line, Metrics(str(stage), number, str(phase), values)))
    last = max([*found.rows, *found.damaged], default=0)
    if inner := [line for line in faults if line < last or found.is_cut]:
        expected = "an object with stage, round and phase"
        raise ReportError(f"{shown(path)}:{min(inner)}: expected {expected} on one line")
    return rows, found.is_cut or bool(faults)


def _text(path: Path) -> str:
    try:
        with open_regular(path, "expected a file of a run") as file:
            return file.read().decode("utf-8", "replace")
    except OSError as error:
        raise ReportError(f"{shown(path)}: cannot be read: {error.strerror}") from None
    except Unreadable as error:
        raise ReportError(f"{shown(path)}: {error}") from None


def _parsed(path: Path, shape: type[S]) -> S:
    try:
        return TypeAdapter(shape).validate_json(_text(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        line = str(visible(f"{path}: {place}: {first['msg']}"))
        raise ReportError(" ".join(line.split("\n"))) from None


def visible(value: object) -> object:
    """Text whose control and direction characters show as escapes; all else as it is."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "".join(
        c
        if c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs"
        else c.encode("unicode_escape").decode()
        for c in value
    )
