"""Loads what a user names as `MODULE:NAME` or `FILE.py:NAME`; each failure is one line."""

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from stepagent.console.printable import printable
from stepagent.tasks.adapters.raised import raised

FORMS = "MODULE:NAME or FILE.py:NAME"


class CannotLoad(RuntimeError):
    """What a user named cannot be loaded or used; the message is one line."""

    def __init__(self, message: str) -> None:
        """The message may hold text from outside."""
        super().__init__(printable(message, limit=4096))


def load_name(place: str) -> object:
    """The object that a place such as `games.guess:GuessEnv` or `games/guess.py:GuessEnv` names.

    Runs the module's code. A module is looked up in the working directory first, as `python -m`
    does; modules that a file imports also in its own folder. Raises `CannotLoad`.
    """
    where, _, name = place.rpartition(":")
    is_file = where.endswith(".py") or os.sep in where
    if not name.isidentifier() or not where or not (is_file or _is_dotted_name(where)):
        raise CannotLoad(f"{place}: expected {FORMS}")
    module = _loaded_file(Path(where)) if is_file else _imported(where)
    if not hasattr(module, name):
        names = _own_names(module)
        has = f"; it has: {', '.join(names[:10])}" if names else ""
        raise CannotLoad(f"{where} has no {name}{_hint(name, names) or has}")
    return getattr(module, name)


def _is_dotted_name(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _imported(name: str) -> ModuleType:
    _search(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise CannotLoad(f"{name}: importing it raised {raised(error)}") from error
        near = [file.stem for file in Path.cwd().glob("*.py")]
        raise CannotLoad(
            f"{name}: no such module in this folder or among the installed packages"
            f"{_hint(name, near)}"
        ) from None
    except (Exception, SystemExit) as error:
        raise CannotLoad(f"{name}: importing it raised {raised(error)}") from error


def _loaded_file(file: Path) -> ModuleType:
    path = file.resolve()
    if not path.is_file() or path.suffix != ".py":
        near = [str(file.with_name(other.name)) for other in path.parent.glob("*.py")]
        raise CannotLoad(f"{file}: no such Python file{_hint(str(file), near)}")
    found = sys.modules.get(path.stem)
    if found is not None and getattr(found, "__file__", None) == str(path):
        return found
    return run_file(file)


def run_file(file: Path) -> ModuleType:
    """Runs a Python file, also if it was run before, and returns its module.

    The file can import modules of the working directory and of its own folder. Raises `CannotLoad`,
    with the file's own exception as its cause.
    """
    path = file.resolve()
    found = sys.modules.get(path.stem)
    _search(Path.cwd())
    _search(path.parent)
    # A file called like a module that is in use must not take its place.
    name = path.stem if found is None else f"{path.stem} of {path.parent}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:  # for no file that ends in .py
        raise CannotLoad(f"{file}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses of the file look themselves up here
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise CannotLoad(f"{file}: importing it raised {raised(error)}") from error
    return module


def _search(folder: Path) -> None:
    """Lets imports find the folder's modules, now and later."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()


def _own_names(module: ModuleType) -> list[str]:
    """Names of classes, functions and objects that the module makes itself."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and not (callable(value) and getattr(value, "__module__", "") != module.__name__)
    ]


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
