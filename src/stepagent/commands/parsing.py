"""Parsing of command-line arguments: tyro makes options and help from a function's signature."""

import difflib
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from types import SimpleNamespace
from typing import Any

import tyro

from stepagent.bounds import SEED, check_bounds

CONFIG = (
    tyro.conf.FlagCreatePairsOff,  # --resume without --no-resume
    tyro.conf.AvoidSubcommands,  # fields of nested configs are plain options, in any order
    tyro.conf.CascadeSubcommandArgs,
)


class UsageError(ValueError):
    """The arguments of a command cannot be used; the message is one line."""


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """One line for an unknown name: the closest known one, and all that are allowed."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {what} {name!r}; {hint}allowed: {', '.join(known)}"


def run_command(function: Callable[..., None], name: str, args: Sequence[str]) -> None:
    """Parses the arguments and calls the function; its docstring is the command's help.

    Raises `OutOfBounds` if `seed` is out of range.
    """

    @wraps(function)
    def checked(*places: Any, **given: Any) -> None:
        if "seed" in given:
            check_bounds(SimpleNamespace(**given), {"seed": SEED})
        function(*places, **given)

    tyro.cli(checked, prog=f"stepagent {name}", args=args, config=CONFIG)


def check_at_least_one(option: str, number: int) -> None:
    """Raises `UsageError` if the number is below 1."""
    if number < 1:
        raise UsageError(f"{option} must be at least 1, not {number}")
