"""Implicit reflection: step-wise DPO; the step reward is a log-ratio of policies."""

from dataclasses import dataclass

from torch import Tensor

from stepagent.algorithms.dpo import DPOConfig, dpo, implicit_rewards
from stepagent.inspection import path_logprobs
from stepagent.learners.base import Log, Stateless
from stepagent.model.policy import Policy
from stepagent.practice import Lesson


@dataclass(frozen=True, kw_only=True)
class ImplicitConfig(DPOConfig):
    """One round of implicit reflection: step-wise DPO (arXiv 2305.18290, eq. 7) plus SFT."""

    def learner(self, novice: Policy) -> "Implicit":
        """Every round has the policy it starts from as its reference."""
        return Implicit(self)


class Implicit(Stateless):
    """Step-wise DPO against the policy that the round starts from."""

    def __init__(self, config: DPOConfig) -> None:
        """One `DPOConfig` for every round."""
        self.config = config

    def learn(self, policy: Policy, lesson: Lesson, *, seed: int, log: Log) -> list[Tensor] | None:
        """Prefers the expert's actions; returns the implicit rewards of the held-out paths."""
        held_out = lesson.held_out_trees
        reference = path_logprobs(policy, held_out)
        dpo(policy, lesson.trees, self.config, seed=seed, log=lambda m: log("train", m))
        return implicit_rewards(path_logprobs(policy, held_out), reference, self.config.beta)
