"""The run folder in several processes: the first one writes, the others follow.

All run the same units and compute the same results. What the others would write goes to a folder of
their own and is deleted. With storage the first process sends each finished unit there, and a
process whose machine does not see its run folder fetches it from there.
"""

import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from stepagent.experiment.manifest import Units, read_manifest
from stepagent.experiment.run import Run
from stepagent.experiment.run_json import RunError, shown
from stepagent.experiment.storage import Storage
from stepagent.files.atomic import TEMPORARY
from stepagent.processes import ranks
from stepagent.types import Record


def open_run(
    folder: Path, settings: Mapping[str, Any], *, resume: bool, storage: str | None = None
) -> Run:
    """Opens the run folder in each process; raises as `Run` does.

    With `storage`, a URL, a copy of it is kept there, from which a run that is resumed brings the
    units that are missing here; raises `StorageError` too.
    """
    kept = None if storage is None else Storage(storage)
    run = None
    if ranks.is_first():
        run = (
            Run(folder, settings, resume=resume)
            if kept is None
            else StoredRun(folder, settings, resume=resume, storage=kept)
        )
    try:
        config = ranks.from_first(run.config if run else {})
        is_seen = _is_seen(folder)
        if kept is None and not ranks.all_of(is_seen):
            raise RunError(
                f"{shown(folder)}: not seen by all processes; expected a folder that all machines "
                "share, or --storage"
            )
    except BaseException:
        if run:
            run.close()
        raise
    return run or Follower(folder, config, kept, is_seen=is_seen)


def _is_seen(folder: Path) -> bool:
    """Whether this process sees what the first one puts into the folder."""
    if ranks.count() == 1:
        return True
    # A name that was never asked for, since file systems remember that there was nothing.
    mark = folder / ranks.from_first(TEMPORARY.replace("*", secrets.token_hex(8)))
    if ranks.is_first():
        mark.touch()
    ranks.wait()
    is_seen = mark.exists()
    ranks.wait()
    if ranks.is_first():
        mark.unlink()
    return is_seen


class StoredRun(Run):
    """A run folder of which a copy is kept on storage."""

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], *, resume: bool, storage: Storage
    ) -> None:
        """As `Run`; raises `StorageError` too, and `RunError` if the storage holds another run."""
        self._storage = storage
        there = storage.config()
        if there is not None:
            if not resume:
                raise RunError(
                    f"{storage.name}: holds a run already; add --resume, or name other storage"
                )
            storage.fetch(folder, there)
        super().__init__(folder, settings, resume=resume)
        try:
            sent = {} if there is None else there["units"]
            storage.send(folder, {u: m for u, m in self.units.manifests.items() if u not in sent})
        except BaseException:
            self.close()
            raise

    def __exit__(self, *errors: object) -> None:
        """Sends what was written after the last unit, and closes the folder."""
        try:
            if errors[0] is None:
                self._storage.send(self.folder, {})
        finally:
            self.close()

    @contextmanager
    def unit(self, unit: str) -> Iterator[Path]:
        """As `Run.unit`; the unit is sent too before others go on."""
        with super().unit(unit) as folder:
            yield folder
        self._storage.send(self.folder, {unit: self.units.manifests[unit]})
        ranks.wait()


class Follower(Run):
    """A run folder that another process writes; reads what it has finished."""

    def __init__(
        self, folder: Path, config: dict[str, Any], storage: Storage | None, *, is_seen: bool
    ) -> None:
        """`config` is the first process's; its folder is seen here, or else there is `storage`."""
        self.folder = folder
        self.config = config
        self._storage = storage
        self._is_seen = is_seen
        if storage and not is_seen:
            storage.fetch(folder, config, wait=True)
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
        if self._storage:
            ranks.wait()
            if not self._is_seen and (there := self._storage.config()):
                self._storage.fetch(self.folder, there, wait=True)
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
