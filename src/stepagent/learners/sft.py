"""Behavioural cloning as a learner: the control of every comparison, and DAgger."""

from dataclasses import dataclass

from torch import Tensor

from stepagent.algorithms.sft import SFTConfig, sft
from stepagent.learners.base import Log, Stateless
from stepagent.model.policy import Policy
from stepagent.practice import Lesson


@dataclass(frozen=True, kw_only=True)
class MoreSFTConfig(SFTConfig):
    """One round of more SFT on the demonstrations."""

    def learner(self, novice: Policy) -> "MoreSFT":
        """Needs no practice."""
        return MoreSFT(self, practises=False)


@dataclass(frozen=True, kw_only=True)
class DAggerConfig(SFTConfig):
    """One round of SFT in detours."""

    def learner(self, novice: Policy) -> "MoreSFT":
        """Clones the expert's actions in the states of its lesson's detours."""
        return MoreSFT(self, practises=True)


class MoreSFT(Stateless):
    """More behavioural cloning, without reflection.

    On the demonstrations alone it is the control. In detours (`practises`) it is DAgger (Ross et
    al. 2011, arXiv 1011.0686): it isolates what inspection contributes.
    """

    def __init__(self, config: SFTConfig, *, practises: bool) -> None:
        """`config.epochs` passes in each round."""
        self.config = config
        self.practises = practises

    def learn(self, policy: Policy, lesson: Lesson, *, seed: int, log: Log) -> list[Tensor] | None:
        """Clones the expert's actions."""
        sft(policy, lesson.demonstrations, self.config, seed=seed, log=lambda m: log("train", m))
        return None
