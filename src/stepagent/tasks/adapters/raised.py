"""What went wrong in somebody else's Python code, and where: one line instead of a traceback."""

import os
import sysconfig
import traceback
from pathlib import Path

from stepagent.console.printable import printable

PACKAGE = str(Path(__file__).parents[2]) + os.sep
INSTALLED = tuple(
    {sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib")}
)
"""Folders of Python and of installed packages, whose code is rarely to blame."""


def raised(error: BaseException) -> str:
    """The exception and the line of the user's code that it came from.

    For example `KeyError: 'north' (game.py:31)`. The place is the innermost frame that belongs
    neither to StepAgent, nor, if there is any other, to Python or an installed package.
    """
    try:
        # The text of a SyntaxError has the place already.
        said = str(error.msg if isinstance(error, SyntaxError) else error)
    except Exception as fault:  # a message that raises in its turn
        said = f"({type(fault).__name__} in its message)"
    said = " ".join(said.split())
    message = f"{type(error).__name__}: {said}" if said else type(error).__name__
    place = _place(error)
    return printable(message, limit=300) + (f" ({printable(place, limit=300)})" if place else "")


def cause(error: BaseException) -> BaseException | None:
    """What to raise an error `from` in a context manager: the exception, except `StopIteration`.

    contextlib takes a RuntimeError that a StopIteration caused for the StopIteration itself, and
    would raise that again.
    """
    return None if isinstance(error, StopIteration) else error


def _place(error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_shown(error.filename)}:{error.lineno}"
    frames = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not frame.f_code.co_filename.startswith((PACKAGE, "<frozen"))
    ]
    own = [found for found in frames if not found[0].startswith(INSTALLED)]
    if not frames:
        return ""
    file, line = (own or frames)[-1]
    return f"{_shown(file)}:{line}"


def _shown(file: str) -> str:
    """The path from the working directory, for files below it."""
    path = Path(file)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
