"""Lessons: what a learner works with in one round, and how it is made by practice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from stepagent.bounds import COUNT, check_bounds
from stepagent.detours import Detours
from stepagent.inspection import StepTree, practise, rollout_tree, step_trees
from stepagent.model.generation import Decoding
from stepagent.model.policy import Policy
from stepagent.rendering.renderer import RenderedTrajectory
from stepagent.types import PracticedStep


@dataclass(frozen=True, kw_only=True)
class InspectionConfig:
    """How the agent practises."""

    num_actions: int = 1
    """Agent actions in each expert state."""
    decoding: Decoding = Decoding()
    """How they are sampled."""

    def __post_init__(self) -> None:
        """Raises `OutOfBounds` for numbers that cannot be."""
        check_bounds(self, {"num_actions": COUNT})


@dataclass(frozen=True)
class Lesson:
    """What a learner works with in one round."""

    demonstrations: Sequence[RenderedTrajectory]
    practised: Sequence[PracticedStep]
    held_out: Sequence[RenderedTrajectory]
    held_out_practised: Sequence[PracticedStep]
    explored: Sequence[RenderedTrajectory] = ()
    """Episodes that the policy of the round played itself on the items of the demonstrations."""
    detours: Detours | None = None
    """How the agent's mistakes came into the demonstrations, if they have any."""
    compared: Sequence[StepTree] = ()
    """What is practised where policies are compared, if those are detours."""

    @property
    def trees(self) -> list[StepTree]:
        """The demonstrations with the agent's actions as branches."""
        return step_trees(self.demonstrations, self.practised)

    @property
    def explored_by_item(self) -> dict[str, list[RenderedTrajectory]]:
        """The agent's own episodes of each item that it explored."""
        found: dict[str, list[RenderedTrajectory]] = {}
        for episode in self.explored:
            found.setdefault(episode.trajectory.id, []).append(episode)
        return found

    @property
    def rollout_trees(self) -> list[StepTree]:
        """The explored items: each demonstration with the agent's own episodes of its item."""
        expert = {d.trajectory.id: d for d in self.demonstrations}
        return [rollout_tree(own, expert[item]) for item, own in self.explored_by_item.items()]

    @property
    def held_out_trees(self) -> list[StepTree]:
        """The held-out trajectories with the agent's actions as branches."""
        return step_trees(self.held_out, self.held_out_practised)

    @property
    def compared_trees(self) -> Sequence[StepTree]:
        """Where the agent is compared with the expert: held-out states like those it learns in."""
        return self.compared or self.held_out_trees


def inspect_demonstrations(
    policy: Policy,
    demonstrations: Sequence[RenderedTrajectory],
    config: InspectionConfig,
    *,
    seed: int,
) -> list[PracticedStep]:
    """The agent's own actions in every state of the demonstrations."""
    return practise(
        policy,
        demonstrations,
        config.decoding,
        seed=seed,
        num_actions=config.num_actions,
    )


class Practice:
    """Lessons for the rounds: what a round's starting policy does in every expert state.

    All methods of a run begin with the same novice and practise by the same seed, so what it does
    is found out once, by the first of them.
    """

    def __init__(
        self,
        lesson: Lesson,
        inspection: InspectionConfig,
        *,
        seed: int,
        detour: Callable[[Policy, Sequence[RenderedTrajectory], int], Detours] | None = None,
    ) -> None:
        """`lesson` has the demonstrations and nothing practised yet.

        `detour` makes trajectories anew, by a round's policy and seed, with its mistakes in them.
        """
        self.lesson = lesson
        self.inspection = inspection
        self.seed = seed
        self.detour = detour
        self._first: Lesson | None = None
        self._compared: Sequence[RenderedTrajectory] | None = None

    def practised(self, policy: Policy, number: int) -> Lesson:
        """The lesson of a round, practised with the policy that the round starts from."""
        if number == 1 and self._first is not None:
            return self._first
        seed, lesson = self.seed_of(number), self.lesson
        if self.detour is not None:
            detours = self.detour(policy, lesson.demonstrations, seed)
            lesson = replace(lesson, demonstrations=detours.demonstrations, detours=detours)
        own, held = (
            inspect_demonstrations(policy, trajectories, self.inspection, seed=seed)
            for trajectories in (lesson.demonstrations, lesson.held_out)
        )
        found = replace(lesson, practised=own, held_out_practised=held)
        if number == 1:
            self._first = found
        return found

    def choose_compared(self, novice: Policy) -> None:
        """Policies are compared in the same states: in detours, if any, those of the novice."""
        held_out = self.lesson.held_out
        if self.detour is not None:
            held_out = self.detour(novice, held_out, self.seed_of(1)).demonstrations
        self._compared = held_out

    def compared(self, policy: Policy, number: int) -> list[StepTree]:
        """What a policy does in the states where policies are compared, by the seed of a round."""
        assert self._compared is not None, "choose_compared comes first"
        seed = self.seed_of(number)
        practised = inspect_demonstrations(policy, self._compared, self.inspection, seed=seed)
        return step_trees(self._compared, practised)

    def seed_of(self, number: int) -> int:
        """The seed of a round."""
        return self.seed * 1000 + number


def with_rewards(
    practised: Sequence[PracticedStep], trees: Sequence[StepTree], rewards: Sequence[Tensor]
) -> list[PracticedStep]:
    """The practised steps of the trees, in the trees' order, with the rewards of their paths."""
    found = []
    steps = iter(practised)
    for tree, values in zip(trees, rewards, strict=True):
        numbers = iter(values.tolist())
        for _ in range(int(tree.is_expert.sum())):
            step = next(steps)
            expert_reward = next(numbers)
            actions = tuple(
                a.model_copy(update={"reward": next(numbers)}) for a in step.agent_actions
            )
            found.append(
                step.model_copy(update={"expert_reward": expert_reward, "agent_actions": actions})
            )
    return found
