"""Hashes of everything that the units of a run wrote, so that later changes are detected.

The manifest in a unit's folder holds the SHA-256 of its files, of the files it wrote elsewhere in
the run folder, and of its rows of metrics.jsonl. config.json lists the hashes of the manifests in
the order of the units, and a hash of its own values. Any changed file is detected, manifests
included, and so is a unit that was removed from among the others.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from stepagent.console.printable import printable
from stepagent.experiment.run_folder import (
    METRICS,
    UNITS,
    name_in_unit,
    unit_file,
    unit_path,
)
from stepagent.experiment.run_json import RunError, read_json, read_rows, shown, write_json
from stepagent.files.atomic import TEMPORARY, file_hash

MANIFEST = "manifest.json"
WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True)
class Manifest:
    """What one unit wrote."""

    files: dict[str, str]
    """SHA-256 by the path within the run folder."""
    rows: str
    """SHA-256 of its rows of metrics.jsonl, their times left out."""


def rows_hash(rows: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 of the rows of a unit without their times, so that equal runs have equal hashes."""
    digest = hashlib.sha256()
    for row in rows:
        known = {name: value for name, value in row.items() if name != "seconds"}
        digest.update(json.dumps(known, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def make_manifest(
    made: Path, unit: str, elsewhere: Mapping[str, str], rows: Sequence[Mapping[str, Any]]
) -> Manifest:
    """Writes the manifest of a unit into the folder `made`, which holds the unit's files."""
    own = {unit_file(unit, name): file_hash(made / name) for name in _files(made)}
    found = Manifest(dict(sorted({**own, **elsewhere}.items())), rows_hash(rows))
    write_json(made / MANIFEST, asdict(found))
    return found


def read_manifest(folder: Path) -> Manifest:
    """The manifest in a unit's folder; raises `RunError` if it is missing or no manifest."""
    value = read_json(folder / MANIFEST)
    match value:
        case {"files": dict() as files, "rows": str() as rows} if all(
            isinstance(digest, str)
            and ".." not in (path := PurePosixPath(name)).parts
            and not path.is_absolute()
            for name, digest in files.items()
        ):
            return Manifest(files, rows)
    raise RunError(f"{shown(folder / MANIFEST)}: not the manifest of a unit; restore it")


def check_policy(folder: Path) -> None:
    """Raises `RunError` if a unit's folder, or a copy of one, was changed since it was written."""
    if not (folder / MANIFEST).is_file():
        return
    files = read_manifest(folder).files.items()
    hashes = {own: digest for name, digest in files if (own := name_in_unit(name))}
    for name in sorted(hashes.keys() | {*_files(folder)}):
        if fault := _fault(folder / name, hashes.get(name)):
            raise RunError(f"{shown(folder / name)}: {fault}; expected a unit as it was written")


def has_units(folder: Path) -> bool:
    """Whether units of a run were finished in the folder."""
    return any(folder.glob(unit_file("*", MANIFEST)))


class Units:
    """The finished units of a run folder, in order, and what they wrote."""

    def __init__(self, folder: Path, listed: Mapping[str, str]) -> None:
        """Reads the manifests; `listed` has their hashes, from config.json.

        The last units may be missing: a resumed run makes them again. Raises `RunError` if one is
        missing among the others, or if its manifest was changed.
        """
        self.folder = folder
        self.manifests: dict[str, Manifest] = {}
        self.hashes: dict[str, str] = {}
        """Hashes of the manifests, for config.json."""
        units = folder / UNITS
        there = {p.name for p in units.glob("*") if p.is_dir() and not p.match(TEMPORARY)}
        # A kill may have come between a unit's rename and its line in config.json.
        order = [*listed, *sorted(there - listed.keys())]
        if len(there - listed.keys()) > 1:
            raise RunError(
                f"{shown(units / order[-1])}: not made by this run; move it out of the folder"
            )
        self.names = [unit for unit in order if unit in there]
        for unit, name in zip(order, self.names, strict=False):
            if unit != name:
                missing = shown(units / unit)
                raise RunError(f"{missing}: missing, unlike later units; {self._remedy(name)}")
        for unit in self.names:
            path = units / unit / MANIFEST
            if not path.is_file():
                raise self._error(path, unit, "missing")
            self.hashes[unit] = file_hash(path)
            if self.hashes[unit] != listed.get(unit, self.hashes[unit]):
                raise self._error(path, unit, f"not as unit {printable(unit)} wrote it")
            self.manifests[unit] = read_manifest(units / unit)

    def add(self, unit: str, made: Manifest) -> None:
        """Adds a unit that has just been finished."""
        self.names.append(unit)
        self.manifests[unit] = made
        self.hashes[unit] = file_hash(self.folder / unit_file(unit, MANIFEST))

    def writer(self, name: str) -> str | None:
        """The unit that wrote a file, given by its path within the run folder."""
        return next((u for u in self.names if name in self.manifests[u].files), None)

    def check(self, name: str) -> None:
        """Raises `RunError` if a file was changed since its unit wrote it, or no unit wrote it."""
        path, unit = self.folder / name, self.writer(name)
        if unit is None:
            raise RunError(f"{shown(path)}: written by no finished unit of the run")
        if fault := _fault(path, self.manifests[unit].files[name]):
            raise self._error(path, unit, fault)

    def check_all(self, units: Iterable[str] | None = None, *, weights: bool = True) -> None:
        """Raises `RunError` for the first file of the units that was changed, removed or added.

        Without `weights`, weight files only have to exist.
        """
        for unit in self.names if units is None else [u for u in units if u in self.names]:
            files = self.manifests[unit].files
            for name, digest in files.items():
                path = self.folder / name
                if not weights and path.suffix in WEIGHTS and path.is_file():
                    continue
                if fault := _fault(path, digest):
                    raise self._error(path, unit, fault)
            folder = self.folder / unit_path(unit)
            for name in _files(folder):
                if unit_file(unit, name) not in files:
                    raise RunError(
                        f"{shown(folder / name)}: not written by unit {printable(unit)}; "
                        "move it out of the folder"
                    )

    def check_rows(self) -> dict[int, dict[str, Any]]:
        """The rows of finished units by line; raises `RunError` if they were changed."""
        path = self.folder / METRICS
        found = read_rows(path)
        own = {n: row for n, row in found.rows.items() if row.get("unit") in self.names}
        rows: dict[str, list[dict[str, Any]]] = {unit: [] for unit in self.names}
        for row in own.values():
            rows[row["unit"]].append(row)
        for unit in self.names:
            if rows_hash(rows[unit]) != self.manifests[unit].rows:
                place = (
                    f"{shown(path)}:{found.damaged[0]}: not JSON" if found.damaged else shown(path)
                )
                fault = f"the rows of unit {printable(unit)} are not as it wrote them"
                raise RunError(f"{place}: {fault}; {self._remedy(unit)}")
        for number in found.damaged:
            if number < max(own, default=0):
                raise RunError(
                    f"{shown(path)}:{number}: not JSON; no unit wrote it, delete the line"
                )
        order = [self.names.index(row["unit"]) for row in own.values()]
        if order != sorted(order):
            raise RunError(f"{shown(path)}: its rows are in another order; restore it")
        return own

    def _error(self, path: Path, unit: str, fault: str) -> RunError:
        return RunError(f"{shown(path)}: {fault}; {self._remedy(unit)}")

    def _remedy(self, unit: str) -> str:
        again = [unit_path(printable(name)) for name in self.names[self.names.index(unit) :]]
        them = "it" if len(again) == 1 else "them"
        return f"restore it, or delete {', '.join(again)} so that --resume makes {them} again"


def _fault(path: Path, digest: str | None) -> str:
    """What is wrong with a file that should have this hash; empty if nothing."""
    if digest is None:
        return "not written by its unit"
    if not path.is_file():
        return "missing"
    return "" if file_hash(path) == digest else "not as its unit wrote it"


def _files(folder: Path) -> list[str]:
    """Names of the files in a unit's folder, the manifest and hidden files left out."""
    inside = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return sorted(
        name.as_posix()
        for name in inside
        if name.as_posix() != MANIFEST and not any(part.startswith(".") for part in name.parts)
    )
