"""The JSON files of a run folder: settings, metrics and results; errors are one line."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepagent.console.printable import printable
from stepagent.experiment.run_folder import CONFIG
from stepagent.files.atomic import atomic_write, disk_errors
from stepagent.files.lines import Unreadable, open_regular

MAY_CHANGE = {"config.compute": ("token_budget", "gradient_checkpointing", "shard")}
"""Settings that may change when a run is resumed: they decide how much memory is needed, and change
results by rounding only."""

MAY_MOVE = ("config.practise_with",)
"""Addresses, which may change but neither appear nor disappear: then something else would act."""

_SHA256 = re.compile("[0-9a-f]{64}")


class RunError(ValueError):
    """The run folder cannot be used as asked; the message is one line."""


def write_json(path: Path, value: object) -> None:
    """Writes indented JSON atomically."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as file:
        file.write(text.encode() + b"\n")


def read_json(path: Path) -> Any:
    """The JSON value of a file; raises `RunError` if it is missing or damaged."""
    try:
        return json.loads(_content(path, "expected the JSON of a run"))
    except (ValueError, RecursionError) as error:
        reason = printable(str(error), limit=200)
        raise RunError(f"{shown(path)}: not JSON ({reason}); restore it") from None


def _content(path: Path, expected: str) -> bytes:
    """The content of a file; raises `RunError` for anything else, such as a pipe."""
    try:
        with disk_errors(path), open_regular(path, expected) as file:
            return file.read()
    except Unreadable as error:
        raise RunError(f"{shown(path)}: {error}") from None


def shown(path: Path) -> str:
    """A path for a message."""
    return printable(str(path), limit=4096)


def check_name(path: Path) -> None:
    """Raises `RunError` for a name that is not UTF-8: model libraries cannot write to it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise RunError(f"{shown(path)}: a name that is not UTF-8; name another folder") from None


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes config.json with a hash of its values."""
    write_json(folder / CONFIG, {**config, "sha256": _hash_of_values(config)})


def read_config(folder: Path) -> dict[str, Any] | None:
    """The values of config.json; None if a version of StepAgent that kept no hashes wrote it.

    Raises `RunError` if it is not the config.json of a run, or was changed.
    """
    path = folder / CONFIG
    config = read_json(path)
    if not isinstance(config, dict):
        raise RunError(f"{shown(path)}: not an object; expected the settings of a run")
    if not {"recipe", "versions"} & config.keys():
        raise RunError(f"{shown(path)}: not the settings of a run; restore it")
    if "sha256" not in config:
        return None
    expected = config.pop("sha256")
    parts = [config.get(name) for name in ("data", "versions", "units")]
    if expected != _hash_of_values(config) or not all(isinstance(part, dict) for part in parts):
        raise RunError(f"{shown(path)}: changed since StepAgent wrote it; restore it")
    return config


def _hash_of_values(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Rows:
    """What metrics.jsonl holds."""

    rows: dict[int, dict[str, Any]]
    """Each row by its line, counted from 1."""
    damaged: list[int]
    """Lines that are no rows."""
    is_cut: bool
    """Whether the last line is unfinished, so left out: it is being written, or a kill cut it."""


def read_rows(path: Path) -> Rows:
    """The rows of metrics.jsonl; none if there is no file."""
    if not path.exists():
        return Rows({}, [], is_cut=False)
    lines = _content(path, "expected the metrics of a run").split(b"\n")
    rows, damaged = dict[int, dict[str, Any]](), list[int]()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows[number] = row
        elif number < len(lines):
            damaged.append(number)
    return Rows(rows, damaged, is_cut=bool(lines[-1]) and len(lines) not in rows)


def first_change(before: Any, now: Any, name: str) -> str | None:
    """Which setting differs, in words; none if only those differ that may."""
    if isinstance(before, dict) and isinstance(now, dict):
        inner = (
            first_change(before.get(key), now.get(key), f"{name}.{key}".replace("of.", "of "))
            for key in {**before, **now}
            if key not in MAY_CHANGE.get(name, ())
        )
        return next((change for change in inner if change), None)
    if before == now or (name in MAY_MOVE and None not in (before, now)):
        return None
    if all(_SHA256.fullmatch(str(value)) for value in (before, now)):
        return f"{printable(name)}: its content has changed since the run began"
    was, is_now = (printable(json.dumps(value), limit=200) for value in (before, now))
    return f"{printable(name)} was {was}, is now {is_now}"
