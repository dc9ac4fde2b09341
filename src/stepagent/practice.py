"""Practice: what the policy of a round does in the expert's states, as a lesson for a learner."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import get_args

from torch import Tensor

from stepagent.bounds import AMOUNT, COUNT, check_bounds
from stepagent.detours import Detours, take_detours
from stepagent.inspection import StepTree, inspect, rollout_tree, step_trees
from stepagent.model.generation import Decoding
from stepagent.model.policy import Policy
from stepagent.rendering.renderer import RenderedTrajectory
from stepagent.rollout import outcomes_by_item
from stepagent.seeds import derive
from stepagent.tasks.base import Split, Task
from stepagent.tasks.tries import Lost, all_lost
from stepagent.types import PracticedStep

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class InspectionConfig:
    """How the agent acts in the expert's states."""

    num_actions: int = 1
    """Actions sampled in each of the expert's states."""
    decoding: Decoding = Decoding()
    """How they are sampled."""

    def __post_init__(self) -> None:
        """Raises `OutOfBounds` for numbers out of range."""
        check_bounds(self, {"num_actions": COUNT})


@dataclass(frozen=True, kw_only=True)
class Playground:
    """An environment to practise in."""

    task: Task
    detours: int
    """The agent's mistakes in a row that are inserted into a demonstration; 0 for none."""
    num_parallel: int = 8
    """Episodes that run at the same time."""

    def __post_init__(self) -> None:
        """Raises `OutOfBounds` for numbers out of range."""
        check_bounds(self, {"detours": AMOUNT, "num_parallel": COUNT})

    @cached_property
    def items(self) -> frozenset[str]:
        """All items of the task: demonstrations from elsewhere may belong to none of them."""
        splits: tuple[Split, ...] = get_args(Split)
        return frozenset(item for split in splits for item in self.task.items(split))


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a learner works with in one round; complete when it is made."""

    demonstrations: Sequence[RenderedTrajectory]
    """The expert's trajectories; with the agent's mistakes in them if it took detours."""
    practised: Sequence[PracticedStep]
    """The agent's actions in every state of the demonstrations, in their order; empty for a learner
    that does not practise."""
    held_out: Sequence[RenderedTrajectory]
    """Trajectories of the expert that are only measured on."""
    held_out_practised: Sequence[PracticedStep]
    """The agent's actions in their states; empty as above."""
    explored: Sequence[RenderedTrajectory] = ()
    """Episodes that the policy of the round played itself on the items of the demonstrations."""
    lost: int = 0
    """Episodes that are missing among them because their environment was lost."""
    detours: Detours | None = None
    """How the agent's mistakes were inserted into the demonstrations, if it took detours."""
    compared_in_detours: Sequence[StepTree] | None = None
    """Held-out trajectories with detours in them and the agent's actions as branches."""

    @cached_property
    def trees(self) -> list[StepTree]:
        """The demonstrations with the agent's actions as branches."""
        return step_trees(self.demonstrations, self.practised)

    @cached_property
    def held_out_trees(self) -> list[StepTree]:
        """The held-out trajectories with the agent's actions as branches."""
        return step_trees(self.held_out, self.held_out_practised)

    @property
    def compared(self) -> Sequence[StepTree]:
        """Held-out states like those that the agent learns in, with its actions.

        A learner measures in them how far it is from the expert.
        """
        return self.held_out_trees if self.compared_in_detours is None else self.compared_in_detours

    @cached_property
    def explored_by_item(self) -> dict[str, list[RenderedTrajectory]]:
        """The agent's own episodes by item."""
        found: dict[str, list[RenderedTrajectory]] = {}
        for episode in self.explored:
            found.setdefault(episode.trajectory.id, []).append(episode)
        return found

    @cached_property
    def rollout_trees(self) -> list[StepTree]:
        """The explored items: each demonstration with the agent's own episodes of its item."""
        expert = {d.trajectory.id: d for d in self.demonstrations}
        return [rollout_tree(own, expert[item]) for item, own in self.explored_by_item.items()]


Comparison = Callable[[Policy, int], Sequence[StepTree]]
"""Inspects a policy in the states where all policies are compared; takes the number of the round,
which gives the seed."""


class Practice:
    """Makes the lessons of all rounds.

    All methods of a run start from the same novice with the same seed, so round 1 is inspected
    once, for the first of them.
    """

    def __init__(
        self,
        demonstrations: Sequence[RenderedTrajectory],
        held_out: Sequence[RenderedTrajectory],
        config: InspectionConfig,
        *,
        seed: int,
        playground: Playground | None = None,
    ) -> None:
        """Without a playground the agent practises in the expert's states only."""
        self.demonstrations = demonstrations
        self.held_out = held_out
        self.config = config
        self.seed = seed
        self.playground = playground
        self._first: Lesson | None = None
        self._repeated: dict[str, bool] = {}

    def lesson(
        self,
        policy: Policy,
        number: int,
        *,
        practises: bool = True,
        explores: int = 0,
        comparison: Comparison | None = None,
    ) -> Lesson:
        """The lesson of round `number`, made with the policy that the round starts from.

        The policy also plays `explores` episodes of each item. `comparison` chooses the states in
        which the learner measures; by default those of the held-out trajectories.
        """
        lesson = self._practised(policy, number) if practises else self._unpractised
        if explores:
            episodes, lost = self._explored(policy, explores, number)
            lesson = replace(lesson, explored=episodes, lost=lost)
        if comparison is not None and lesson.detours is not None:
            lesson = replace(lesson, compared_in_detours=comparison(policy, number))
        return lesson

    def comparison(self, novice: Policy) -> Comparison:
        """Compares policies in the same states: with detours, in those of the novice."""
        held_out = self.held_out
        if self._takes_detours:
            held_out = self._detours(novice, held_out, self.seed_of(1)).demonstrations

        def compared(policy: Policy, number: int) -> Sequence[StepTree]:
            return step_trees(held_out, self._inspected(policy, held_out, number))

        return compared

    def seed_of(self, number: int) -> int:
        """The seed of a round."""
        return derive(self.seed, "round", number)

    @property
    def _takes_detours(self) -> bool:
        return self.playground is not None and self.playground.detours > 0

    @property
    def _unpractised(self) -> Lesson:
        return Lesson(
            demonstrations=self.demonstrations, practised=(),
            held_out=self.held_out, held_out_practised=(),
        )  # fmt: skip

    def _practised(self, policy: Policy, number: int) -> Lesson:
        if number == 1 and self._first is not None:
            return self._first
        demonstrations, detours = self.demonstrations, None
        if self._takes_detours:
            detours = self._detours(policy, demonstrations, self.seed_of(number))
            demonstrations = detours.demonstrations
        found = Lesson(
            demonstrations=demonstrations,
            practised=self._inspected(policy, demonstrations, number),
            held_out=self.held_out,
            held_out_practised=self._inspected(policy, self.held_out, number),
            detours=detours,
        )
        if number == 1:
            self._first = found
        return found

    def _inspected(
        self, policy: Policy, trajectories: Sequence[RenderedTrajectory], number: int
    ) -> list[PracticedStep]:
        return inspect(
            policy,
            trajectories,
            self.config.decoding,
            seed=self.seed_of(number),
            num_actions=self.config.num_actions,
        )

    def _detours(
        self, policy: Policy, trajectories: Sequence[RenderedTrajectory], seed: int
    ) -> Detours:
        assert self.playground is not None
        known = self.playground.items
        playable = [n for n, t in enumerate(trajectories) if t.trajectory.id in known]
        if not playable:
            return Detours([*trajectories], taken=0, refused=0, not_repeated=0, lost=0, env_steps=0)
        found = take_detours(
            policy,
            self.playground.task,
            [trajectories[n] for n in playable],
            self.config.decoding,
            in_a_row=self.playground.detours,
            seed=seed,
            num_parallel=self.playground.num_parallel,
            repeated=self._repeated,
        )
        every = list(trajectories)
        for n, detoured in zip(playable, found.demonstrations, strict=True):
            every[n] = detoured
        return replace(found, demonstrations=every)

    def _explored(
        self, policy: Policy, episodes: int, number: int
    ) -> tuple[list[RenderedTrajectory], int]:
        """One episode for each demonstration, and how many were lost.

        An item is not played in every round if it has several episodes.
        """
        if self.playground is None:
            raise ValueError("the policy plays episodes of its own: expected an environment")
        known = self.playground.items
        every = [d.trajectory.id for d in self.demonstrations if d.trajectory.id in known]
        stride = min(episodes, len(every))
        items = every[number % stride :: stride]
        found, lost = list[RenderedTrajectory](), list[Lost]()
        for turn in range(episodes):
            outcomes = outcomes_by_item(
                policy,
                self.playground.task,
                items,
                self.config.decoding,
                seed=derive(self.seed_of(number), "exploration", turn),
                num_parallel=self.playground.num_parallel,
                description="Exploration",
            )
            played = dict[str, RenderedTrajectory]()
            for item, outcome in outcomes.items():
                if isinstance(outcome, Lost):
                    logger.warning("lost: %s", outcome)
                    lost.append(outcome)
                else:
                    played[item] = outcome
            found += [played[item] for item in items if item in played]
        if lost and not found:
            raise all_lost(lost, len(lost))
        return found, len(lost)


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
