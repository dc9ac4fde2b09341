"""A copy of a run folder on storage that all machines reach: any URL or path that fsspec opens.

The files have the same names there. A unit's files are sent when it is finished, and config.json,
which lists the finished units, comes last and is exchanged in one step: a unit that was cut on its
way is not listed. What comes back is checked by the hashes of config.json and of the manifests.
Names are believed only if they stay inside the part of the run folder that a unit writes to.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO, Any

import fsspec

from stepagent.console.printable import printable
from stepagent.experiment.manifest import MANIFEST, Manifest, read_manifest
from stepagent.experiment.run_folder import (
    CONFIG,
    EPISODES,
    METRICS,
    PARTS,
    PRACTICE,
    REPORT,
    unit_file,
    unit_path,
)
from stepagent.experiment.run_json import RunError, read_config, shown, write_config
from stepagent.files.atomic import TEMPORARY, atomic_folder, atomic_write
from stepagent.files.locks import Taken, lock

PIECE = 2**20
"""Bytes that are read at once."""
MAX_JSON = 2**26
"""Most bytes of a config.json or manifest."""
PART = ".part"
"""Ends the name of a file that is being sent, before it is exchanged."""


class StorageError(RuntimeError):
    """The storage cannot be reached, or does not hold what it should; the message is one line."""


class Storage:
    """A run folder's copy at a URL, or in another folder."""

    def __init__(self, url: str) -> None:
        """Raises `StorageError` if fsspec does not know such URLs, or lacks a package for them."""
        self.name = printable(re.sub("//[^/@]*@", "//", url), limit=1000)  # without a password
        is_local = fsspec.core.split_protocol(url)[0] in (None, "file", "local")
        with self._reached(""):
            more = {"auto_mkdir": True} if is_local else {}
            self._files, self._root = fsspec.core.url_to_fs(url, **more)

    def config(self) -> dict[str, Any] | None:
        """The values of config.json there; None if nothing is there.

        Raises `StorageError` if it is not as it was sent, or if there is something else.
        """
        with self._reached(CONFIG):
            self._files.invalidate_cache()
            names = list[str]()
            if not (is_there := self._files.exists(self._path(CONFIG))):
                names = self._files.ls(self._root, detail=False) if self._is_folder() else []
        if any(not name.endswith(PART) for name in names):
            raise StorageError(f"{self.name}: not empty and not a run; expected an empty place")
        if not is_there:
            return None
        with TemporaryDirectory() as folder:
            (Path(folder) / CONFIG).write_bytes(self._read(CONFIG))
            try:
                found = read_config(Path(folder))
            except RunError:
                found = None
        units = found["units"].items() if found else ()
        if found is None or not all(_is_plain(u) and isinstance(d, str) for u, d in units):
            raise StorageError(f"{self.name}/{CONFIG}: not as StepAgent wrote it; expected a run")
        return found

    def send(self, folder: Path, units: Mapping[str, Manifest]) -> None:
        """Copies finished units of the run folder, then what is not of a unit, config.json last."""
        for unit, manifest in units.items():
            for name in (*manifest.files, unit_file(unit, MANIFEST)):
                self._send(folder / name, name)
        for name in (REPORT, METRICS, CONFIG):
            if (folder / name).exists():
                self._send(folder / name, f"{name}{PART}")
                with self._reached(name):
                    self._files.mv(self._path(f"{name}{PART}"), self._path(name))

    def fetch(self, folder: Path, config: Mapping[str, Any], *, wait: bool = False) -> None:
        """Brings the units that `config` lists and the run folder lacks, in their order.

        If another process is working in the folder, raises `RunError`, or waits with `wait`. Raises
        `StorageError` for what is not as it was sent, and `RunError` if the folder holds another
        run, other units, or files that are no run.
        """
        folder.mkdir(parents=True, exist_ok=True)
        try:
            held = lock(folder / ".lock", wait=wait)
        except Taken:
            raise RunError(f"{shown(folder)}: another process is working in it") from None
        try:
            done = self._done(folder, config)
            left = {u: d for u, d in config["units"].items() if u not in done}
            if not left and (folder / CONFIG).exists():
                return
            write_config(folder, {**config, "units": done})
            for part in PARTS:
                (folder / part).mkdir(exist_ok=True)
            with self._reached(METRICS):
                has_rows = self._files.exists(self._path(METRICS))
            if has_rows:
                with atomic_write(folder / METRICS) as file:
                    self._copy(METRICS, file)
            for unit, digest in left.items():
                self._fetch_unit(folder, unit, digest)
                done[unit] = digest
                write_config(folder, {**config, "units": done})
        finally:
            held.release()

    def _done(self, folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
        """The units that the folder has, which may be more than `config` lists."""
        if not (folder / CONFIG).exists():
            if any(p.name != ".lock" and not p.match(TEMPORARY) for p in folder.iterdir()):
                raise RunError(
                    f"{shown(folder)}: not empty and not a run; expected a new or empty folder"
                )
            return {}
        here = read_config(folder) or {"units": {}}
        done, wanted = list(here["units"].items()), list(config["units"].items())
        both = min(len(done), len(wanted))
        if here.get("created") != config.get("created") or done[:both] != wanted[:both]:
            raise RunError(
                f"{shown(folder)}: holds another run than {self.name}, or other units; name "
                "another folder or other storage"
            )
        return dict(done)

    def _fetch_unit(self, folder: Path, unit: str, digest: str) -> None:
        listing = unit_file(unit, MANIFEST)
        text = self._read(listing)
        if hashlib.sha256(text).hexdigest() != digest:
            raise self._changed(listing)
        with atomic_folder(folder / unit_path(unit), replace=True) as made:
            (made / MANIFEST).write_bytes(text)
            for name, expected in read_manifest(made).files.items():
                own = _name_in(unit, name)
                if own is None:
                    with atomic_write(folder / name) as file:
                        self._checked(name, file, expected)
                else:
                    (made / own).parent.mkdir(parents=True, exist_ok=True)
                    with open(made / own, "xb") as file:
                        self._checked(name, file, expected)

    def _checked(self, name: str, file: IO[bytes], digest: str) -> None:
        if self._copy(name, file) != digest:
            raise self._changed(name)

    def _copy(self, name: str, file: IO[bytes]) -> str:
        """Writes a file of the storage into an open one; returns its SHA-256."""
        digest = hashlib.sha256()
        with self._reached(name):
            source = self._files.open(self._path(name), "rb")
        with source:
            while True:
                with self._reached(name):
                    piece = source.read(PIECE)
                if not piece:
                    return digest.hexdigest()
                digest.update(piece)
                file.write(piece)

    def _read(self, name: str) -> bytes:
        with self._reached(name), self._files.open(self._path(name), "rb") as file:
            text: bytes = file.read(MAX_JSON)
        return text

    def _send(self, path: Path, name: str) -> None:
        with self._reached(name):
            self._files.put_file(str(path), self._path(name))

    def _is_folder(self) -> bool:
        return bool(self._files.isdir(self._root))

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _changed(self, name: str) -> StorageError:
        return StorageError(f"{self.name}/{printable(name)}: not as it was sent; restore it")

    @contextmanager
    def _reached(self, name: str) -> Iterator[None]:
        """Within the block, an error of the storage becomes `StorageError`; each has its own."""
        try:
            yield
        except Exception as error:
            reason = printable(" ".join(str(error).split()) or type(error).__name__, limit=300)
            place = f"{self.name}/{printable(name)}" if name else self.name
            raise StorageError(f"{place}: {reason}") from None


def _is_plain(name: object) -> bool:
    """Whether a name from outside is that of one file or folder, and not hidden."""
    return isinstance(name, str) and bool(re.fullmatch(r"\w[\w .+-]*", name))


def _name_in(unit: str, name: str) -> str | None:
    """The name within the unit's folder of a file in its manifest; None if it is elsewhere.

    Raises `StorageError` for a name that no unit has: hidden, of another unit, or of the run.
    """
    parts = PurePosixPath(name).parts
    if "/".join(parts) == name and all(_is_plain(part) for part in parts):
        inside = PurePosixPath(unit_path(unit)).parts
        if parts[: len(inside)] == inside and len(parts) > len(inside) and parts[-1] != MANIFEST:
            return "/".join(parts[len(inside) :])
        if len(parts) == 1 and name not in (CONFIG, METRICS, *PARTS):
            return None
        if len(parts) == 2 and parts[0] in (PRACTICE, EPISODES):
            return None
    raise StorageError(f"{printable(unit)}: its manifest has a file {printable(name)}")
