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
from stepagent.experiment.run_folder import CONFIG, METRICS, unit_file
from stepagent.files.atomic import TEMPORARY, atomic_write, disk_errors, file_hash
from stepagent.files.lines import Unreadable, open_regular

MANIFEST = "manifest.json"
WEIGHTS = (".safetensors", ".bin")


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
        return json.loads(_bytes(path, "expected the JSON of a run"))
    except (ValueError, RecursionError) as error:
        reason = printable(str(error), limit=200)
        raise RunError(f"{shown(path)}: not JSON ({reason}); restore it") from None


def _bytes(path: Path, expected: str) -> bytes:
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
    parts = {PurePosixPath(n).parts: h for n, h in read_manifest(folder).files.items()}
    hashes = {"/".join(p[2:]): digest for p, digest in parts.items() if p[0] == "units"}
    for name in sorted(hashes.keys() | {*_files(folder)}):
        if fault := _fault(folder / name, hashes.get(name)):
            raise RunError(f"{shown(folder / name)}: {fault}; expected a unit as it was written")


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
        units = folder / "units"
        there = {p.name for p in units.glob("*") if p.is_dir() and not p.match(TEMPORARY)}
        # A kill may have come between a unit's rename and its line in config.json.
        order = [*listed, *sorted(there - listed.keys())]
        if len(there - listed.keys()) > 1:
            raise RunError(f"{shown(units / order[-1])}: not made by this run; take it away")
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
        self.hashes[unit] = file_hash(self.folder / "units" / unit / MANIFEST)

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
            folder = self.folder / "units" / unit
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
                raise RunError(f"{shown(path)}:{number}: not JSON; no unit wrote it, take it out")
        order = [self.names.index(row["unit"]) for row in own.values()]
        if order != sorted(order):
            raise RunError(f"{shown(path)}: its rows are in another order; restore it")
        return own

    def _error(self, path: Path, unit: str, fault: str) -> RunError:
        return RunError(f"{shown(path)}: {fault}; {self._remedy(unit)}")

    def _remedy(self, unit: str) -> str:
        again = [f"units/{printable(name)}" for name in self.names[self.names.index(unit) :]]
        them = "it" if len(again) == 1 else "them"
        return f"restore it, or delete {', '.join(again)} so that --resume makes {them} again"


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
    lines = _bytes(path, "expected the metrics of a run").split(b"\n")
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
