"""What environments and servers of others say, as texts, numbers and flags; or one clear line.

A text in place of a number or a flag is never guessed at: `"false"` would count as true.
"""

import math
from collections.abc import Iterable
from typing import Any

from pydantic import JsonValue

from stepagent.console.printable import printable
from stepagent.tasks.episode import MAX_OBSERVATION_CHARS


class Unusable(ValueError):
    """What an environment says is no text, no number, or not where it was looked for."""

    def __init__(self, message: str) -> None:
        """Text of environments may be in the message."""
        super().__init__(printable(message, limit=4096))


def text(value: object, what: str) -> str:
    """The value as an observation; `Unusable` if it is no text or has no end."""
    if not isinstance(value, str):
        raise Unusable(f"{what} is no text but {type(value).__name__}")
    if len(value) > MAX_OBSERVATION_CHARS:
        raise Unusable(f"{what} has {len(value):,} characters, over {MAX_OBSERVATION_CHARS:,}")
    # Lone surrogates, which JSON may hold, cannot be written to a file.
    return value.encode("utf-8", "replace").decode()


def number(value: Any, what: str) -> float:
    """The value as a finite number; `Unusable` if it is none."""
    try:
        found = math.nan if isinstance(value, str | bytes | bytearray) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise Unusable(f"{what} is no number: {quoted(value)}")
    return found


def flag(value: Any, what: str) -> bool:
    """The value as yes or no, None being no; `Unusable` for texts, which would all be yes."""
    try:
        if value is None or (not isinstance(value, str | bytes) and value in (0, 1)):
            return bool(value)
    except (TypeError, ValueError):  # such as arrays
        pass
    raise Unusable(f"{what} is neither true nor false: {quoted(value)}")


def quoted(value: JsonValue | object) -> str:
    """The start of something from outside, escaped, for a message of one line."""
    try:
        shown = ascii(value)
    except Exception:  # what is nested too deep, and objects that cannot be shown
        shown = f"({type(value).__name__})"
    return shown if len(shown) <= 200 else f"{shown[:200]}..."


def names(found: Iterable[Any]) -> str:
    """Names of fields, which come from outside too, for a message."""
    listed = sorted(str(name) for name in found)
    return quoted(listed) if listed else "nothing"
