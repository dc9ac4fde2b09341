"""Settings by name: a recipe, config.json of an earlier run, a `TrainConfig` in a Python file."""

import difflib
import json
from collections.abc import Iterable
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from stepagent.console.printable import printable, shown
from stepagent.experiment.config import SettingsError, TrainConfig
from stepagent.experiment.recipes import RECIPES
from stepagent.experiment.run_json import read_config
from stepagent.tasks.adapters.python_names import CannotLoad, run_file
from stepagent.tasks.adapters.raised import raised

_UNSAVED = ("engine",)
"""Settings that change no number, which config.json therefore leaves out."""


class Saved(NamedTuple):
    """Settings that were named."""

    recipe: str
    config: TrainConfig
    folder: str | None
    """Name of the folder of its model; config.json does not hold its path."""


def settings_of(name: str, *, known: Iterable[str] = RECIPES) -> Saved:
    """The settings of a recipe, of RUN/config.json or of FILE.py:NAME.

    Raises `SettingsError` for an unknown name, among those that are `known`; `SettingsError` or
    `RunError` for a file that has no usable settings.
    """
    if name in RECIPES:
        return Saved(name, RECIPES[name], None)
    if Path(name).suffix == ".json":
        return settings_of_run(Path(name))
    file, colon, variable = name.rpartition(":")
    if colon and file.endswith(".py"):
        found = settings_of_file(Path(file), variable)
        return Saved(f"{Path(file).name}:{variable}", found, None)
    if name.endswith(".py"):
        place = printable(name, limit=4096)
        raise SettingsError(f"{place}: expected {place}:NAME, with the name of a TrainConfig in it")
    if (Path(name) / "config.json").is_file():
        place = printable(name, limit=4096)
        raise SettingsError(f"{place}: a folder; expected {place}/config.json")
    known = [*known]
    raise SettingsError(
        f"unknown recipe {printable(name)!r}; {_near(name, known)}allowed: {', '.join(known)}"
    )


def settings_of_run(path: Path) -> Saved:
    """The settings of the run whose config.json this is.

    Raises `RunError` if the file was changed, `SettingsError` if this version of StepAgent has
    other settings.
    """
    place = printable(str(path), limit=4096)
    if path.name != "config.json":
        raise SettingsError(f"{place}: expected the config.json of a run, under that name")
    if not path.is_file():
        raise SettingsError(f"{place}: no such file; expected the config.json of a run")
    saved = read_config(path.parent)
    known = saved.get("config") if saved else None
    if not isinstance(known, dict) or "methods" not in known:
        raise SettingsError(
            f"{place}: not of a run of this version of stepagent train; expected the config.json "
            "of one"
        )
    try:
        found = _value(TrainConfig, known, "config")
    except (ValueError, RuntimeError) as error:
        raise SettingsError(f"{place}: {printable(str(error), limit=500)}") from None
    assert saved is not None and isinstance(found, TrainConfig)
    model = found.model if isinstance(found.model, str) else None
    is_on_hub = saved.get("inputs", {}).get("model") == model
    recipe = printable(str(saved.get("recipe")), limit=200)
    return Saved(recipe, found, None if is_on_hub else model)


def settings_of_file(path: Path, name: str) -> TrainConfig:
    """The `TrainConfig` of that name in a Python file; raises `SettingsError` if there is none."""
    place = printable(str(path), limit=4096)
    if not path.is_file():
        raise SettingsError(f"{place}: no such file; expected a Python file with a TrainConfig")
    try:
        module = run_file(path)
    except CannotLoad as error:
        raise SettingsError(
            f"{place}: cannot be imported: {raised(error.__cause__ or error)}"
        ) from None
    known = [key for key, value in vars(module).items() if isinstance(value, TrainConfig)]
    if name in known:
        found: TrainConfig = getattr(module, name)
        _check_types(found, f"{place}: {name}")
        return found
    listed = ", ".join(known) or "none"
    raise SettingsError(
        f"{place}: no TrainConfig {printable(name)!r}; {_near(name, known)}it has: {listed}"
    )


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def _check_types(config: TrainConfig, where: str) -> None:
    """Raises `SettingsError` for a value that its field cannot hold; Python itself checks none."""
    try:
        as_json = json.loads(json.dumps(asdict(config)))
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{where}: {printable(str(error), limit=300)}") from None
    _value(TrainConfig, as_json, where)


def _value(kind: Any, value: Any, where: str) -> Any:
    """The JSON value as an instance of the type; raises `SettingsError` if it is none."""
    origin, inner = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(value, dict):
        return _record(kind, value, where)
    if origin in (Union, UnionType):
        return _value(_member(inner, value, where), value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_value(inner[0], part, f"{where}[{n}]") for n, part in enumerate(value))
    if origin is Literal and value in inner:
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind in (str, int, bool) and type(value) is kind:
        return value
    if kind is NoneType and value is None:
        return None
    expected = f"one of {', '.join(map(str, inner))}" if origin is Literal else _kind_name(kind)
    raise SettingsError(f"{where} is {shown(value)}, expected {expected}")


def _record(kind: Any, value: dict[str, Any], where: str) -> Any:
    known = {f.name: f for f in fields(kind)}
    if unknown := sorted(value.keys() - known.keys()):
        raise SettingsError(f"{where}.{unknown[0]}: not a setting of this version of StepAgent")
    types = get_type_hints(kind)
    for name, field in known.items():
        no_default = field.default is MISSING and field.default_factory is MISSING
        if name not in value and (no_default or name not in _UNSAVED):
            raise SettingsError(f"{where}.{name}: missing; this version of StepAgent has it")
    return kind(**{n: _value(types[n], part, f"{where}.{n}") for n, part in value.items()})


def _member(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """Which type of a union a value is of: the dataclass with its fields, or the plain type."""
    if isinstance(value, dict):
        named = {kind: {f.name for f in fields(kind)} for kind in kinds if is_dataclass(kind)}
        for kind, names in named.items():
            if value.keys() <= names and names - value.keys() <= {*_UNSAVED}:
                return kind
        raise SettingsError(f"{where}: its fields are not settings of this version of StepAgent")
    for kind in kinds:
        if not is_dataclass(kind):
            try:
                _value(kind, value, where)
            except SettingsError:
                continue
            return kind
    raise SettingsError(f"{where} is {shown(value)}, expected another kind of value")


def _kind_name(kind: Any) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(kind, "an object" if is_dataclass(kind) else "a list")
