"""The run folder in several processes: the first one writes, the others follow.

All run the same units and compute the same results. What the others would write goes to a folder of
their own and is deleted.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from stepagent.experiment.manifest import Units, read_manifest
from stepagent.experiment.run import Run
from stepagent.experiment.run_json import RunError, read_config, shown
from stepagent.processes import ranks
from stepagent.types import Record


def open_run(folder: Path, settings: Mapping[str, Any], *, resume: bool) -> Run:
    """Opens the run folder in each process; raises as `Run` does."""
    run = Run(folder, settings, resume=resume) if ranks.is_first() else None
    ranks.wait()
    return run or Follower(folder)


class Follower(Run):
    """A run folder that another process writes; reads what it has finished."""

    def __init__(self, folder: Path) -> None:
        """Raises `RunError` if the first process's folder is not seen here."""
        config = read_config(folder) if folder.is_dir() else None
        if config is None:
            raise RunError(
                f"{shown(folder)}: not seen by process {ranks.rank()}; expected a folder that all "
                "machines share"
            )
        self.folder = folder
        self.config = config
        self.units = Units(folder, config["units"])

    def close(self) -> None:
        """Holds nothing."""

    def record_data(self, name: str, facts: Mapping[str, Any]) -> None:
        """Notes them in memory."""
        self.config["data"][name] = dict(facts)

    @contextmanager
    def unit(self, unit: str) -> Iterator[Path]:
        """A folder that is deleted; afterwards the first process has finished the unit."""
        with TemporaryDirectory() as folder:
            yield Path(folder)
        ranks.wait()
        self.units.add(unit, read_manifest(self.unit_folder(unit)))

    @contextmanager
    def write(self, name: str) -> Iterator[IO[bytes]]:
        """Discards what is written."""
        with open(os.devnull, "wb") as file:
            yield file

    def write_records(self, name: str, records: Iterable[Record]) -> str:
        """Discards them; their hash is not known here."""
        return ""

    def log(self, **row: float | str | int | None) -> None:
        """Discards the row."""
