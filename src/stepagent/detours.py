"""Detours: the agent makes its mistakes in the environment, and the expert goes on behind them.

    practice    state s          the agent does a', the expert does a
    detour      s, a', reply     the agent acts again, the expert still does a

In practice the agent never sees what its mistakes lead to, so it learns nothing for the states in
which it will then be. Most mistakes in text environments cost a step and no more: behind them the
demonstration can go on, and all that is seen from the expert's next action on is what was seen
there, to the same end. So the expert's action still works behind the mistake, and is taken for the
label, as in DAgger (Ross et al. 2011, arXiv 1011.0686, alg. 3.1), with nobody to ask. A mistake
behind which the demonstration cannot go on is left out, and so is an action that did what the
expert's does: it was none, and its label would be to do everything twice.

Of the environment's judgement only this is looked at: whether the demonstration still ends solved.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from queue import SimpleQueue

from stepagent.actions import same_action
from stepagent.console.progress import track
from stepagent.inspection import practise
from stepagent.model.generation import Decoding
from stepagent.model.policy import Policy
from stepagent.rendering.renderer import RenderedTrajectory
from stepagent.tasks.base import Task, TextEnv
from stepagent.tasks.tries import Lost, all_lost, raise_if_failed, retried
from stepagent.types import AgentAction, Step

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Detours:
    """Demonstrations with the agent's mistakes in their histories."""

    demonstrations: list[RenderedTrajectory]
    """In the order they came in; the action of each state is the expert's, whoever acted there."""
    taken: int
    """Mistakes behind which the demonstrations go on."""
    refused: int
    """Those that were taken away: the last ones that were made before something else was seen."""
    not_repeated: int
    """Demonstrations that come out otherwise without any mistake."""
    lost: int
    """Those without mistakes because their environment was lost too often."""
    env_steps: int
    """Actions that were played to find out, the expert's included."""


def take_detours(
    policy: Policy,
    task: Task,
    demonstrations: Sequence[RenderedTrajectory],
    decoding: Decoding,
    *,
    in_a_row: int,
    seed: int,
    num_parallel: int = 8,
) -> Detours:
    """The agent practises in every state and, where it is wrong, takes the detour.

    At most `in_a_row` mistakes follow each other. A demonstration that the environment does not
    repeat stays as it is.
    """
    found = list(demonstrations)
    mistakes = [_Mistakes([[] for _ in d.actions]) for d in demonstrations]
    for turn in range(in_a_row):
        _add(policy, found, mistakes, decoding, seed=seed * 1000 + turn)
        room = policy.context - decoding.max_new_tokens
        found = _walk_all(policy, task, demonstrations, mistakes, room, num_parallel)
    return Detours(
        found,
        taken=sum(len(row) for own in mistakes for row in own.before),
        refused=sum(len(own.refused) for own in mistakes),
        not_repeated=sum(own.is_repeated is False for own in mistakes),
        lost=sum(own.is_lost for own in mistakes),
        env_steps=sum(own.env_steps for own in mistakes),
    )


@dataclass
class _Mistakes:
    """What the agent does wrong in one demonstration."""

    before: list[list[AgentAction]]
    """For each of the expert's actions the agent's, in a row, that come first."""
    refused: set[tuple[int, str]] = field(default_factory=set)
    """Step and action, where the demonstration did not go on behind it."""
    is_repeated: bool | None = None
    """Whether the demonstration is, without any; unknown until something else was seen."""
    is_lost: bool = False
    """Whether the environment was lost too often to find out."""
    env_steps: int = 0


def _add(
    policy: Policy,
    found: Sequence[RenderedTrajectory],
    mistakes: Sequence[_Mistakes],
    decoding: Decoding,
    *,
    seed: int,
) -> None:
    """What the agent does wrong in the states that the expert's actions follow."""
    practised = iter(practise(policy, found, decoding, seed=seed))
    for own in mistakes:
        for number, row in enumerate(own.before):
            for _ in row:
                next(practised)
            step = next(practised)
            (action,) = step.agent_actions
            is_right = same_action(action.text, step.expert_action)
            is_refused = own.is_repeated is False or (number, action.text) in own.refused
            if not is_right and not is_refused and not own.is_lost:
                row.append(action)


def _walk_all(
    policy: Policy,
    task: Task,
    demonstrations: Sequence[RenderedTrajectory],
    mistakes: Sequence[_Mistakes],
    room: int,
    num_parallel: int,
) -> list[RenderedTrajectory]:
    """Walks all demonstrations; takes the mistakes away that cannot stay.

    Raises `EnvironmentLost` if the environments of all of them are lost too often.
    """
    envs = [task.make_env() for _ in range(min(num_parallel, len(demonstrations)))]
    free = SimpleQueue[TextEnv]()
    for env in envs:
        free.put(env)

    def walk(demonstration: RenderedTrajectory, own: _Mistakes) -> RenderedTrajectory | Lost:
        env = free.get()
        try:
            return _walk(policy, env, demonstration, own, room)
        finally:
            free.put(env)

    try:
        with ThreadPoolExecutor(len(envs)) as threads:
            walks = threads.map(walk, demonstrations, mistakes)
            outcomes = list(track(walks, "Detours", total=len(demonstrations)))
        raise_if_failed(outcomes)
        found, lost = list[RenderedTrajectory](), list[Lost]()
        for demonstration, own, outcome in zip(demonstrations, mistakes, outcomes, strict=True):
            if isinstance(outcome, Lost):
                outcome = walk(demonstration, own)  # again, with nobody beside it
            if isinstance(outcome, Lost):
                logger.warning("lost: %s; it stays without mistakes", outcome)
                lost.append(outcome)
                own.before, own.is_lost = [[] for _ in own.before], True
                outcome = demonstration
            found.append(outcome)
    finally:
        for env in envs:
            env.close()
    if lost and len(lost) == len(found):
        raise all_lost(lost, len(lost))
    return found


def _walk(
    policy: Policy,
    env: TextEnv,
    demonstration: RenderedTrajectory,
    mistakes: _Mistakes,
    room: int,
) -> RenderedTrajectory | Lost:
    """Plays the demonstration with the mistakes until it is repeated.

    As long as it is not, the last mistake that was made before it came out otherwise is taken away.
    """
    while True:
        walk = _played(policy, env, demonstration, mistakes.before)
        if isinstance(walk, Lost):
            return walk
        mistakes.env_steps += len(walk.steps)
        if walk.is_repeated and walk.rendered.num_tokens <= room:
            return walk.rendered
        if walk.last_mistake is None:
            mistakes.is_repeated = walk.is_repeated  # what was played was the demonstration alone
        elif mistakes.is_repeated is None:
            alone = _played(policy, env, demonstration, [() for _ in mistakes.before])
            if isinstance(alone, Lost):
                return alone
            mistakes.env_steps += len(alone.steps)
            mistakes.is_repeated = alone.is_repeated
        if walk.last_mistake is None or not mistakes.is_repeated:
            mistakes.before = [[] for _ in mistakes.before]
            return demonstration
        wrong = mistakes.before[walk.last_mistake].pop()
        mistakes.refused.add((walk.last_mistake, wrong.text))


def _played(
    policy: Policy,
    env: TextEnv,
    demonstration: RenderedTrajectory,
    mistakes: Sequence[Sequence[AgentAction]],
) -> "_Walk | Lost":
    """The demonstration with the mistakes; a lost environment is tried again."""

    def play() -> _Walk:
        walk = _Walk(env, policy, demonstration)
        walk.play(mistakes)
        return walk

    return retried(demonstration.trajectory.id, play)


@dataclass
class _Walk:
    """A demonstration that is played again, with mistakes."""

    env: TextEnv
    policy: Policy
    demonstration: RenderedTrajectory
    steps: list[Step] = field(default_factory=list)
    """What is seen in each state, and what the expert does there."""
    answers: list[tuple[int, ...]] = field(default_factory=list)
    """Token ids of what the expert does."""
    additions: list[tuple[int, ...]] = field(default_factory=list)
    observation: str = ""
    is_over: bool = False
    is_success: bool = False
    is_repeated: bool = False
    """Whether the demonstration was, its mistakes aside."""
    last_mistake: int | None = None
    """The step of the demonstration before which it was made."""

    def play(self, mistakes: Sequence[Sequence[AgentAction]]) -> None:
        """Up to the end, or to where something else is seen than was."""
        expert, renderer = self.demonstration.trajectory, self.policy.renderer
        self.observation, info = self.env.reset(options={"item": expert.id})
        self.additions.append(renderer.opening(info["instruction"], self.observation))
        for number, (step, ids) in enumerate(
            zip(expert.steps, self.demonstration.actions, strict=True)
        ):
            if self.is_over or self.observation != step.observation:
                return
            for own in mistakes[number]:
                self.last_mistake = number
                before = self.observation
                self._move(number, own.token_ids, own.text)
                if self.is_over or before != self.observation == self._expected(number):
                    return
            self._move(number, ids, step.action)
        is_same_end = self.observation == expert.final_observation
        self.is_repeated = is_same_end and self.is_success == bool(expert.success)

    def _expected(self, number: int) -> str:
        """What the expert's step leads to."""
        expert = self.demonstration.trajectory
        if number + 1 == len(expert.steps):
            return expert.final_observation
        return expert.steps[number + 1].observation

    def _move(self, number: int, ids: tuple[int, ...], text: str) -> None:
        """Does something, whosever action it is, where the expert does its step `number`."""
        answer = self.demonstration.trajectory.steps[number]
        self.steps.append(answer.model_copy(update={"observation": self.observation}))
        self.answers.append(self.demonstration.actions[number])
        self.observation, _, terminated, truncated, info = self.env.step(text)
        self.is_over, self.is_success = terminated or truncated, bool(info["success"])
        renderer = self.policy.renderer
        self.additions.append((*renderer.past(ids), *renderer.observation(self.observation)))

    @property
    def rendered(self) -> RenderedTrajectory:
        expert = self.demonstration.trajectory
        return replace(
            self.demonstration,
            trajectory=expert.model_copy(update={"steps": tuple(self.steps)}),
            additions=tuple(self.additions[:-1]),
            actions=tuple(self.answers),
        )
