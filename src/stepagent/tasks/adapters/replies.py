"""Validates what foreign environments and servers return: texts, numbers and flags.

A string in place of a number or a flag is never interpreted: `"false"` would count as true.
"""

import math
from collections.abc import Iterable
from typing import Any

from pydantic import JsonValue

from stepagent.console.printable import printable
from stepagent.tasks.episode import MAX_OBSERVATION_CHARS


class Unusable(ValueError):
    """A value from an environment has the wrong type or is missing; the message is one line."""

    def __init__(self, message: str) -> None:
        """The message may hold text from environments."""
        super().__init__(printable(message, limit=4096))


def text(value: object, what: str) -> str:
    """The value as an observation; raises `Unusable` if it is not a string or is too long."""
    if not isinstance(value, str):
        raise Unusable(f"{what} is not text but {type(value).__name__}")
    if len(value) > MAX_OBSERVATION_CHARS:
        raise Unusable(f"{what} has {len(value):,} characters, more than {MAX_OBSERVATION_CHARS:,}")
    # Lone surrogates, which JSON may hold, cannot be written to a file.
    return value.encode("utf-8", "replace").decode()


def number(value: Any, what: str) -> float:
    """The value as a finite number; raises `Unusable` if it is not one."""
    try:
        found = math.nan if isinstance(value, str | bytes | bytearray) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise Unusable(f"{what} is not a number: {quoted(value)}")
    return found


def flag(value: Any, what: str) -> bool:
    """The value as a bool, None being False; raises `Unusable` for strings and other values."""
    try:
        if value is None or (not isinstance(value, str | bytes) and value in (0, 1)):
            return bool(value)
    except (TypeError, ValueError):  # such as arrays
        pass
    raise Unusable(f"{what} is neither true nor false: {quoted(value)}")


def quoted(value: JsonValue | object) -> str:
    """The start of a value from outside, escaped, for a one-line message."""
    try:
        shown = ascii(value)
    except Exception:  # nested too deeply, or with a __repr__ that raises
        shown = f"({type(value).__name__})"
    return shown if len(shown) <= 200 else f"{shown[:200]}..."


def names(found: Iterable[Any]) -> str:
    """Names of fields from outside, for a message."""
    listed = sorted(str(name) for name in found)
    return quoted(listed) if listed else "nothing"
