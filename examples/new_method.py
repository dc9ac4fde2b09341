"""A learner of your own beside those of StepAgent, in one table.

    python examples/new_method.py --out runs/new-method

This one clones the expert's action only where the agent did something else.
"""

from dataclasses import dataclass
from functools import partial

from own_environment import ADAM, HOUSEHOLD, arguments

import stepagent
from stepagent.algorithms.sft import maximize_likelihood
from stepagent.inspection import step_tree
from stepagent.learners.base import Log, Stateless


@dataclass(frozen=True, kw_only=True)
class CorrectionConfig(stepagent.SFTConfig):
    """Behavioural cloning of the steps in which the agent was wrong."""

    def learner(self, novice: stepagent.Policy) -> "Correction":
        """The same for every novice."""
        return Correction(self)


class Correction(Stateless):
    """Learns from practice, and carries nothing from round to round."""

    def __init__(self, config: CorrectionConfig) -> None:
        self.config = config

    def learn(
        self, policy: stepagent.Policy, lesson: stepagent.Lesson, *, seed: int, log: Log
    ) -> None:
        """Clones the steps in which at least one of the agent's actions was wrong."""
        practised = iter(lesson.practised)
        trees = [step_tree(demonstration).tree for demonstration in lesson.demonstrations]
        for tree in trees:  # one path for each step, the expert's action
            tree.paths = [path for path in tree.paths if stepagent.agreement([next(practised)]) < 1]
        if wrong := [tree for tree in trees if tree.paths]:
            maximize_likelihood(
                policy, wrong, self.config, "Correction", seed=seed, log=partial(log, "train")
            )


if __name__ == "__main__":
    out, settings = arguments(__doc__)
    stepagent.deterministic()
    mine = CorrectionConfig(epochs=2, batch_size=1, optimizer=ADAM)
    print(stepagent.train(settings, out, task=HOUSEHOLD, learners={"correction": mine}).summary)
