"""How commands read their arguments: tyro makes options and help from a function's signature."""

import difflib
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from types import SimpleNamespace
from typing import Any

import tyro

from stepagent.bounds import SEED, check_bounds

CONFIG = (
    tyro.conf.FlagCreatePairsOff,  # --resume, but no --no-resume
    tyro.conf.AvoidSubcommands,  # all fields of nested settings are options, in any order
    tyro.conf.CascadeSubcommandArgs,
)


class UsageError(ValueError):
    """A command was asked for something that cannot be done; the message is one line."""


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """One line that says what is allowed."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {what} {name!r}; {hint}allowed: {', '.join(known)}"


def run_command(function: Callable[..., None], name: str, args: Sequence[str]) -> None:
    """Calls the function with what the arguments say; its docstring is the command's help.

    Raises `OutOfBounds` for a `seed` that cannot be.
    """

    @wraps(function)
    def checked(*places: Any, **given: Any) -> None:
        if "seed" in given:
            check_bounds(SimpleNamespace(**given), {"seed": SEED})
        function(*places, **given)

    tyro.cli(checked, prog=f"stepagent {name}", args=args, config=CONFIG)


def check_at_least_one(option: str, number: int) -> None:
    """Raises `UsageError` for a number of nothing."""
    if number < 1:
        raise UsageError(f"{option} must be at least 1, not {number}")
