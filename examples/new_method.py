"""A method of your own beside those of StepAgent, in one table.

    python examples/new_method.py --out runs/new-method

This one clones only the demonstrations in which the agent did something else than the expert.
"""

from collections.abc import Callable
from dataclasses import dataclass

from own_environment import ADAM, HOUSEHOLD, arguments

import stepagent
from stepagent import Lesson, Policy


@dataclass(frozen=True)
class Correction(stepagent.SFTConfig, stepagent.Stateless):
    """Settings and learner in one, since nothing is carried from round to round."""

    def learner(self, novice: Policy) -> "Correction":
        """The same for every novice."""
        return self

    def learn(self, policy: Policy, lesson: Lesson, *, seed: int, log: Callable[..., None]) -> None:
        """Improves the policy in place, in every round; it gives no step rewards."""
        wrong = {step.trajectory_id for step in lesson.practised if stepagent.agreement([step]) < 1}
        corrected = [d.trajectory for d in lesson.demonstrations if d.trajectory.id in wrong]
        if corrected:
            stepagent.sft(policy, corrected, self, seed=seed, log=log)


if __name__ == "__main__":
    out, settings = arguments(__doc__)
    stepagent.deterministic()
    mine = {"correction": Correction(epochs=2, batch_size=1, optimizer=ADAM)}
    print(stepagent.train(settings, out, task=HOUSEHOLD, learners=mine).summary)
