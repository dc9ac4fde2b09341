"""Checks where a command may write: a new path, or an existing one that may be overwritten.

Inputs are never overwritten. Symbolic links are refused: some users expect the link to be
replaced, others its target.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from stepagent.commands.parsing import UsageError
from stepagent.experiment.manifest import MANIFEST
from stepagent.experiment.run_folder import CONFIG, UNITS
from stepagent.experiment.run_json import check_name, shown
from stepagent.files.atomic import atomic_folder
from stepagent.processes import ranks


def check_file(file: Path, *, inputs: Iterable[Path] = (), overwrite: bool = False) -> None:
    """Raises `UsageError` unless the file may be written; creates its parent folder.

    An existing file is replaced only with `overwrite`; an input never, by whatever path it is
    named.
    """
    name = shown(file)
    check_no_input(file, inputs)
    if file.is_symlink():
        raise UsageError(f"{name}: is a symbolic link; give the path of the file itself")
    if file.is_dir():
        raise UsageError(f"{name}: is a folder; expected a file")
    if file.exists() and not file.is_file():
        raise UsageError(f"{name}: is not a regular file; expected one")
    if file.exists() and not overwrite:
        raise UsageError(f"{name}: already exists; choose another file or add --overwrite")
    _make_parent(file)


def check_folder(folder: Path, *, inputs: Iterable[Path] = (), overwrite: bool = False) -> None:
    """Raises `UsageError` unless the model folder may be written; creates its parent folder.

    An existing folder is replaced only with `overwrite`, and only if it holds nothing but a model.
    """
    name = shown(folder)
    check_name(folder)
    if folder.name in ("", ".."):
        raise UsageError(f"{name}: does not name a folder; expected the path of a new one")
    check_no_input(folder, inputs)
    if folder.is_symlink():
        raise UsageError(f"{name}: is a symbolic link; give the path of the folder itself")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{name}: already exists and is not a folder; expected a new folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise UsageError(
                f"{name}: already exists; choose a new folder, or add --overwrite to replace the "
                "model in it"
            )
        if not _is_only_model(folder):
            raise UsageError(
                f"{name}: holds other files than a model; --overwrite replaces only a model folder"
            )
    _make_parent(folder)


def check_no_input(out: Path, inputs: Iterable[Path]) -> None:
    """Raises `UsageError` if the output is an input, lies inside one, or contains one."""
    place, exists = out.resolve(), "already exists: " * out.exists()
    for given in inputs:
        if not given.exists():
            continue
        source = given.resolve()
        if place == source or (out.exists() and out.samefile(given)):
            raise UsageError(f"{shown(out)}: {exists}it is the input {shown(given)}")
        # A new file in a model folder is harmless, but not in a part of a run folder.
        is_closed = out.exists() or (source / MANIFEST).is_file() or _is_run(source.parent)
        if given.is_dir() and place.is_relative_to(source) and is_closed:
            raise UsageError(f"{shown(out)}: {exists}it is inside the input {shown(given)}")
        if out.is_dir() and source.is_relative_to(place):
            raise UsageError(f"{shown(out)}: {exists}it contains the input {shown(given)}")


_MODEL_FILE = re.compile(
    r"README\.md|\.gitattributes|(generation_|adapter_|tokenizer_)?config\.json|tokenizer\.(json|model)"
    r"|(added_tokens|special_tokens_map|vocab)\.json|(merges|vocab)\.txt|chat_template\.(jinja|json)"
    r"|(adapter_)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
)
"""Names of the files that make up a model folder; any other file belongs to the user."""


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / UNITS).is_dir()


def _is_only_model(folder: Path) -> bool:
    files = {path.name for path in folder.iterdir()}
    has_model = "tokenizer_config.json" in files and files & {"config.json", "adapter_config.json"}
    return bool(has_model) and all(_MODEL_FILE.fullmatch(name) for name in files)


def _make_parent(path: Path) -> None:
    for above in path.parents:
        if above.exists() and not above.is_dir():
            raise UsageError(f"{shown(above)}: is a file; expected a folder for {shown(path)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{shown(path.parent)}: is not writable; choose another folder")


@contextmanager
def made_folder(folder: Path, *, replace: bool) -> Iterator[Path]:
    """As `atomic_folder`; what other processes than the first write is deleted."""
    made = atomic_folder(folder, replace=replace) if ranks.is_first() else TemporaryDirectory()
    with made as name:
        yield Path(name)
