"""How rewards, or what the info says, become the score of an episode and its success."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stepagent.tasks.adapters.replies import Unusable, flag, names, number


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How the score of an episode is computed: a value, and the scale that maps it to 0-100."""

    of: Literal["info", "sum", "last"]
    """The value: `info[key]` of the last step, the sum of rewards so far, or the last reward."""
    key: str = "score"
    """The key of the value in the info."""
    worst: float = 0.0
    """The value that maps to score 0; lower ones do too, with a warning."""
    best: float = 1.0
    """The value that maps to score 100. A higher one is an error: the scale is wrong, and clipping
    it would report episodes as solved that are not."""
    success: str | None = None
    """The info's key that says whether the task is solved. None: `info["success"]` if the info has
    it, else whether the score is 100."""

    def __post_init__(self) -> None:
        """Raises ValueError unless best is above worst, and both are finite."""
        if not -math.inf < self.worst < self.best < math.inf:
            raise ValueError(
                f"best ({self.best:g}) must be above worst ({self.worst:g}), and both finite"
            )

    def __str__(self) -> str:
        """The rule in words, for reports."""
        scale = f"from {self.worst:g} (0) to {self.best:g} (100)"
        return f"{self._value_name}, {scale}, best of the episode so far"

    @property
    def _value_name(self) -> str:
        names = {"info": f"info {self.key!r}", "sum": "sum of rewards", "last": "last reward"}
        return names[self.of]

    def value(self, total: float, reward: float, info: Mapping[str, Any]) -> float:
        """The value before scaling; raises `Unusable` if the info lacks it or it is no number."""
        if self.of != "info":
            return total if self.of == "sum" else reward
        if self.key not in info:
            raise Unusable(
                f"no {self.key!r} in the info, which has: {names(info)}; name the key of the score "
                "(--score-key)"
            )
        return number(info[self.key], f"{self.key!r} in the info")

    def is_success(self, score: float, info: Mapping[str, Any]) -> bool:
        """Whether the task is solved; raises `Unusable` if the info's value is not a bool."""
        key = self.success or "success"
        if self.success is None and key not in info:
            return score == 100
        try:
            return flag(info.get(key), f"{key!r} in the info")
        except Unusable as error:
            raise Unusable(f"{error}; return a bool, or name another key (--success-key)") from None

    def score(self, total: float, reward: float, info: Mapping[str, Any]) -> float:
        """The value on the scale of 0 to 100; raises `Unusable` if it is missing or above best."""
        value = self.value(total, reward, info)
        share = (value - self.worst) / (self.best - self.worst)
        # Ten rewards of 0.1 add up to slightly less than 1 and must still count as the best. The
        # share is compared rather than the value, which would be coarse on a scale far from 0.
        if math.isclose(share, 1):
            return 100.0
        if share > 1:
            raise Unusable(
                f"the {self._value_name} is {value:g}, above the best value, {self.best:g}; set "
                "best to the highest value that an episode can reach (--best)"
            )
        return 100 * max(share, 0.0)
