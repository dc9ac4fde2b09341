"""Detours: the agent makes its mistakes in the environment, and the expert goes on behind them.

    practice    state s          the agent does a', the expert does a
    detour      s, a', reply     the agent acts again, the expert still does a

In practice the agent never sees what its mistakes lead to, so it learns nothing for the states in
which it will then be. Most mistakes in text environments cost a step and no more: behind them the
demonstration can go on, and all that is seen later is what was seen there. So what the expert does
in the states behind the mistake is known, the same as before it. These are the labels of DAgger
(Ross et al. 2011, arXiv 1011.0686, alg. 3.1) with nobody to ask, and no reward is looked at. A
mistake behind which the demonstration cannot go on is left out.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from queue import SimpleQueue

from stepagent.backends.generation import Decoding
from stepagent.inspection import practise
from stepagent.policy import Policy
from stepagent.progress import track
from stepagent.renderer import RenderedTrajectory
from stepagent.tasks.base import MAX_TRIES, EnvironmentLost, Task, TextEnv
from stepagent.types import AgentAction, Step


@dataclass(frozen=True)
class Detours:
    """Demonstrations with the agent's mistakes in their histories."""

    demonstrations: list[RenderedTrajectory]
    """In the order they came in; the action of each state is the expert's, whoever acted there."""
    taken: int
    """Mistakes behind which the demonstrations go on."""
    refused: int
    """Those behind which they do not."""
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
        found = _walk_all(policy, task, demonstrations, mistakes, num_parallel)
    return Detours(
        found,
        taken=sum(len(row) for own in mistakes for row in own.before),
        refused=sum(len(own.refused) for own in mistakes),
        env_steps=sum(own.env_steps for own in mistakes),
    )


@dataclass
class _Mistakes:
    """What the agent does wrong in one demonstration."""

    before: list[list[AgentAction]]
    """For each of the expert's actions the agent's, in a row, that come first."""
    refused: set[tuple[int, str]] = field(default_factory=set)
    """Step and action, where the demonstration did not go on behind it."""
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
            is_right = action.text == step.expert_action.strip()
            if not is_right and (number, action.text) not in own.refused:
                row.append(action)


def _walk_all(
    policy: Policy,
    task: Task,
    demonstrations: Sequence[RenderedTrajectory],
    mistakes: Sequence[_Mistakes],
    num_parallel: int,
) -> list[RenderedTrajectory]:
    """Walks all demonstrations; takes the mistakes away that cannot stay."""
    envs = [task.make_env() for _ in range(min(num_parallel, len(demonstrations)))]
    free = SimpleQueue[TextEnv]()
    for env in envs:
        free.put(env)

    def walk(demonstration: RenderedTrajectory, own: _Mistakes) -> RenderedTrajectory:
        env = free.get()
        try:
            return _walk(policy, env, demonstration, own)
        finally:
            free.put(env)

    try:
        with ThreadPoolExecutor(len(envs)) as threads:
            walks = threads.map(walk, demonstrations, mistakes)
            return list(track(walks, "Detours", total=len(demonstrations)))
    finally:
        for env in envs:
            env.close()


def _walk(
    policy: Policy, env: TextEnv, demonstration: RenderedTrajectory, mistakes: _Mistakes
) -> RenderedTrajectory:
    """Plays the demonstration with the mistakes until it is repeated.

    As long as it is not, the last mistake that was made before it came out otherwise is taken away.
    """
    tries = 0
    while True:
        walk = _Walk(env, policy, demonstration)
        try:
            is_repeated = walk.play(mistakes.before)
        except EnvironmentLost:
            tries += 1
            if tries >= MAX_TRIES:
                raise
            continue
        finally:
            mistakes.env_steps += len(walk.steps)
        if is_repeated and walk.rendered.num_tokens <= policy.context:
            return walk.rendered
        if walk.last_mistake is None:
            mistakes.before = [[] for _ in mistakes.before]
            return demonstration
        wrong = mistakes.before[walk.last_mistake].pop()
        mistakes.refused.add((walk.last_mistake, wrong.text))


@dataclass
class _Walk:
    """A demonstration that is played again, with mistakes."""

    env: TextEnv
    policy: Policy
    demonstration: RenderedTrajectory
    steps: list[Step] = field(default_factory=list)
    """What is seen in each state, and what the expert does there."""
    answers: list[tuple[int, ...]] = field(default_factory=list)
    """Ids of the latter."""
    additions: list[tuple[int, ...]] = field(default_factory=list)
    observation: str = ""
    is_over: bool = False
    is_success: bool = False
    last_mistake: int | None = None
    """The step of the demonstration before which it was made."""

    def play(self, mistakes: Sequence[Sequence[AgentAction]]) -> bool:
        """Whether the demonstration is repeated, its mistakes aside."""
        expert, renderer = self.demonstration.trajectory, self.policy.renderer
        self.observation, info = self.env.reset(options={"item": expert.id})
        self.additions.append(renderer.opening(info["instruction"], self.observation))
        for number, (step, ids) in enumerate(
            zip(expert.steps, self.demonstration.actions, strict=True)
        ):
            if self.is_over or self.observation != step.observation:
                return False
            for own in mistakes[number]:
                self.last_mistake = number
                self._move(number, own.token_ids, own.text)
                if self.is_over:
                    return False
            self._move(number, ids, step.action)
        is_same_end = self.observation == expert.final_observation
        return is_same_end and self.is_success == bool(expert.success)

    def _move(self, number: int, ids: tuple[int, ...], text: str) -> None:
        """Does something, whoever's action it is, where the expert does its step `number`."""
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
