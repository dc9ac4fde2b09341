"""Bounds of numeric settings, and the check of a config against them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

MAX_SEED = 2**32 - 1
MAX_SECONDS = 1e6
"""Longest time limit in seconds; operating systems count milliseconds in 32 bits."""


class OutOfBounds(RuntimeError):
    """A setting is out of its bounds; the message is one line.

    Not a ValueError, which the command-line parser would print in a box of several lines.
    """


class Limit(Protocol):
    """A condition on a number."""

    def __contains__(self, number: float) -> bool:
        """Whether the number meets it; NaN never does."""
        ...


@dataclass(frozen=True)
class AtLeast:
    """At least `lowest`, and finite."""

    lowest: float

    def __contains__(self, number: float) -> bool:
        """Whether the number is within the bounds."""
        return self.lowest <= number < float("inf")

    def __str__(self) -> str:
        """The bounds in words."""
        return f"at least {self.lowest:g}"


@dataclass(frozen=True)
class Above:
    """Above `lowest`, at most `highest` if that is given, and finite."""

    lowest: float
    highest: float = float("inf")

    def __contains__(self, number: float) -> bool:
        """Whether the number is within the bounds."""
        return self.lowest < number <= self.highest and number != float("inf")

    def __str__(self) -> str:
        """The bounds in words."""
        at_most = "" if self.highest == float("inf") else f" and at most {self.highest:,.0f}"
        return f"above {self.lowest:g}{at_most}"


@dataclass(frozen=True)
class Between:
    """From `lowest` to `highest`, both included."""

    lowest: float
    highest: float

    def __contains__(self, number: float) -> bool:
        """Whether the number is within the bounds."""
        return self.lowest <= number <= self.highest

    def __str__(self) -> str:
        """The bounds in words."""
        return f"from {self.lowest:.10g} to {self.highest:.10g}"


COUNT, AMOUNT, SHARE = AtLeast(1), AtLeast(0), Between(0, 1)
SECONDS, SEED = Above(0, MAX_SECONDS), Between(0, MAX_SEED)


def check_bounds(settings: object, limits: Mapping[str, Limit]) -> None:
    """Checks fields of a config; raises `OutOfBounds` for the first one outside its limit."""
    for name, limit in limits.items():
        number = getattr(settings, name)
        if number not in limit:
            shown = f"{number:g}" if isinstance(number, float) else number
            raise OutOfBounds(f"{name} must be {limit}, not {shown}")
