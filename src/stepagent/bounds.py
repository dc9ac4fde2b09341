"""Bounds of settings: which numbers an option may have."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

MAX_SEED = 2**32 - 1
MAX_SECONDS = 1e6
"""Longest wait, in seconds; operating systems count waits in milliseconds, in 32 bits."""


class OutOfBounds(RuntimeError):
    """A setting has a value that cannot be; the message is one line.

    No ValueError: those the reader of the command line would print in a box of several lines.
    """


class Limit(Protocol):
    """What a number has to be."""

    def __contains__(self, number: float) -> bool:
        """Whether it is; NaN is nothing."""
        ...


@dataclass(frozen=True)
class AtLeast:
    """Not below `lowest`, and finite."""

    lowest: float

    def __contains__(self, number: float) -> bool:
        """Whether the number is within."""
        return self.lowest <= number < float("inf")

    def __str__(self) -> str:
        """In words."""
        return f"at least {self.lowest:g}"


@dataclass(frozen=True)
class Above:
    """Above `lowest`, and finite; not above `highest` either, if that is given."""

    lowest: float
    highest: float = float("inf")

    def __contains__(self, number: float) -> bool:
        """Whether the number is within."""
        return self.lowest < number <= self.highest and number != float("inf")

    def __str__(self) -> str:
        """In words."""
        at_most = "" if self.highest == float("inf") else f" and at most {self.highest:,.0f}"
        return f"above {self.lowest:g}{at_most}"


@dataclass(frozen=True)
class Between:
    """From `lowest` to `highest`, both included."""

    lowest: float
    highest: float

    def __contains__(self, number: float) -> bool:
        """Whether the number is within."""
        return self.lowest <= number <= self.highest

    def __str__(self) -> str:
        """In words."""
        return f"from {self.lowest:.10g} to {self.highest:.10g}"


COUNT, AMOUNT, SHARE = AtLeast(1), AtLeast(0), Between(0, 1)
SECONDS, SEED = Above(0, MAX_SECONDS), Between(0, MAX_SEED)


def check_bounds(settings: object, limits: Mapping[str, Limit]) -> None:
    """Raises `OutOfBounds` that names the first of these fields which is not within its limit."""
    for name, limit in limits.items():
        number = getattr(settings, name)
        if number not in limit:
            shown = f"{number:g}" if isinstance(number, float) else number
            raise OutOfBounds(f"{name} must be {limit}, not {shown}")
