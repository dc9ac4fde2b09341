"""Where commands may write: a new place, or an old file or model that may be replaced; no input.

A symbolic link is refused, since to replace the link and to replace what it points to are both
likely to surprise somebody.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from stepagent.commands.parsing import UsageError
from stepagent.experiment.manifest import MANIFEST, check_name, shown


def check_file(file: Path, *, inputs: Iterable[Path] = (), overwrite: bool = False) -> None:
    """Raises `UsageError` unless a file may be put there; its folder is made.

    An old file is replaced only with `overwrite`, one of the inputs never, whatever its name.
    """
    name = shown(file)
    check_no_input(file, inputs)
    if file.is_symlink():
        raise UsageError(f"{name}: a symbolic link; expected the name of the file itself")
    if file.is_dir():
        raise UsageError(f"{name}: a folder; expected the name of a file")
    if file.exists() and not file.is_file():
        raise UsageError(f"{name}: not an ordinary file; expected the name of one")
    if file.exists() and not overwrite:
        raise UsageError(f"{name}: exists already; name another file, or add --overwrite")
    _make_parent(file)


def check_folder(folder: Path, *, inputs: Iterable[Path] = (), overwrite: bool = False) -> None:
    """Raises `UsageError` unless a model folder may be put there; the folder above it is made.

    An old folder is replaced only with `overwrite`, and only if it has a model and nothing else.
    """
    name = shown(folder)
    check_name(folder)
    if folder.name in ("", ".."):
        raise UsageError(f"{name}: no name of its own; expected the name of a new folder")
    check_no_input(folder, inputs)
    if folder.is_symlink():
        raise UsageError(f"{name}: a symbolic link; expected the name of the folder itself")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{name}: exists already and is no folder; expected a new folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise UsageError(
                f"{name}: exists already; expected the name of a new folder, or --overwrite for "
                "the model in it"
            )
        if not _is_only_model(folder):
            raise UsageError(
                f"{name}: has more in it than a model; --overwrite replaces only a model folder"
            )
    _make_parent(folder)


def check_no_input(out: Path, inputs: Iterable[Path]) -> None:
    """Raises `UsageError` if the output is an input, lies in one that is a folder, or has one."""
    place, exists = out.resolve(), "exists already, " * out.exists()
    for given in inputs:
        if not given.exists():
            continue
        source = given.resolve()
        if place == source or (out.exists() and out.samefile(given)):
            raise UsageError(f"{shown(out)}: {exists}it is the input {shown(given)}")
        # A new file beside a model harms nothing; a part of a run folder has no place for one.
        is_closed = out.exists() or (source / MANIFEST).is_file() or _is_run(source.parent)
        if given.is_dir() and place.is_relative_to(source) and is_closed:
            raise UsageError(f"{shown(out)}: {exists}it is within the input {shown(given)}")
        if out.is_dir() and source.is_relative_to(place):
            raise UsageError(f"{shown(out)}: {exists}it has the input {shown(given)} in it")


_OF_A_MODEL = re.compile(
    r"README\.md|\.gitattributes|(generation_|adapter_|tokenizer_)?config\.json|tokenizer\.(json|model)"
    r"|(added_tokens|special_tokens_map|vocab)\.json|(merges|vocab)\.txt|chat_template\.(jinja|json)"
    r"|(adapter_)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
)
"""Names of the files that make up a model folder; any other file is somebody's own."""


def _is_run(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "units").is_dir()


def _is_only_model(folder: Path) -> bool:
    files = {path.name for path in folder.iterdir()}
    has_model = "tokenizer_config.json" in files and files & {"config.json", "adapter_config.json"}
    return bool(has_model) and all(_OF_A_MODEL.fullmatch(name) for name in files)


def _make_parent(path: Path) -> None:
    for above in path.parents:
        if above.exists() and not above.is_dir():
            raise UsageError(f"{shown(above)}: a file; expected a folder for {shown(path)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{shown(path.parent)}: cannot be written to; name another place")
