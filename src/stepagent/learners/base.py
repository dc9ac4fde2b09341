"""What every learner does: it improves a policy in place from the lesson of one round."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from stepagent.algorithms.discriminator import HeldOut
from stepagent.inspection import StepTree
from stepagent.model.policy import Policy
from stepagent.model.updates import Metrics
from stepagent.practice import Lesson

Log = Callable[[str, Metrics], None]
"""Called with a phase ("train", "discriminator", "ppo") and its metrics; in the phase "start" they
are measures of the policy that the round started from."""


class LearnerStopped(RuntimeError):
    """The learner cannot learn from what it was given; the message is one line."""


class Learner(Protocol):
    """One way to improve a policy; it may carry state from round to round."""

    practises: bool
    """Whether its lessons need the agent's own actions in the expert's states."""
    explores: int
    """Episodes that the policy plays of each item before it learns; 0 needs no environment."""

    def learn(self, policy: Policy, lesson: Lesson, *, seed: int, log: Log) -> list[Tensor] | None:
        """Improves the policy in place.

        Returns the step rewards of the held-out trees: for each tree (paths,), or None if the
        learner has none. Raises `LearnerStopped` if the lesson is of no use to it.
        """
        ...

    def save(self, folder: Path) -> None:
        """Writes the state that the learner carries from round to round."""
        ...

    def load(self, folder: Path) -> None:
        """Reads what `save` wrote."""
        ...


@runtime_checkable
class Measures(Protocol):
    """A learner that can tell how far a policy is from the expert."""

    def measure(self, policy: Policy, lesson: Lesson, *, seed: int, log: Log) -> None:
        """Trains its measure, such as a discriminator, on the lesson; `learn` does so first."""
        ...

    def judge(self, policy: Policy, practised: Sequence[StepTree]) -> HeldOut:
        """How far a policy is from the expert in these practised steps."""
        ...


class LearnerConfig(Protocol):
    """The settings of a learner, which make it."""

    def learner(self, novice: Policy) -> Learner:
        """A fresh learner, for rounds that start from this policy."""
        ...


class Stateless:
    """A base for a `Learner` that needs practice only and carries nothing from round to round.

    A subclass has `learn`.
    """

    practises = True
    explores = 0

    def save(self, folder: Path) -> None:
        """Nothing to write."""

    def load(self, folder: Path) -> None:
        """Nothing to read."""
