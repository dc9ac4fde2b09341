"""Detours: replays demonstrations in the environment with the agent's mistakes inserted.

    inspection  state s                the agent does a', the expert does a
    detour      s, a', observation     the agent acts again, the expert still does a

Inspection never shows the agent where its mistakes lead, so it learns nothing about the states that
follow them. Most mistakes in text environments only cost a step: afterwards the demonstration can
be replayed to its end with the same observations. The expert's action is then still right after the
mistake and serves as its label, as in DAgger (Ross et al. 2011, arXiv 1011.0686, alg. 3.1), but
without an expert to ask. A mistake is dropped if the replay diverges after it. It is also dropped
if it had the effect of the expert's own action, since its label would repeat that action.

Of the environment's scoring only one thing is used: whether the replay still ends in success.
"""

import logging
import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from queue import SimpleQueue

from stepagent.console.progress import track
from stepagent.inspection import inspect
from stepagent.model.generation import Decoding
from stepagent.model.policy import Policy
from stepagent.processes import ranks
from stepagent.rendering.actions import same_action
from stepagent.rendering.renderer import RenderedTrajectory
from stepagent.seeds import derive
from stepagent.tasks.base import Task, TextEnv
from stepagent.tasks.playing import Episode
from stepagent.tasks.tries import Lost, all_lost, in_threads, play_all, retried
from stepagent.types import AgentAction

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Detours:
    """Demonstrations with the agent's mistakes inserted, and how the replays went."""

    demonstrations: list[RenderedTrajectory]
    """In the order given; the action in every state is the expert's, whoever acted there."""
    taken: int
    """Mistakes that were kept, because the replay continued as demonstrated."""
    refused: int
    """Mistakes dropped because the replay diverged after them."""
    not_repeated: int
    """Demonstrations with mistakes whose plain replay differs from the recording."""
    lost: int
    """Demonstrations without mistakes because their environment was lost in every attempt."""
    env_steps: int
    """Actions played in all replays with mistakes, the expert's included."""


def take_detours(
    policy: Policy,
    task: Task,
    demonstrations: Sequence[RenderedTrajectory],
    decoding: Decoding,
    *,
    in_a_row: int,
    seed: int,
    num_parallel: int = 8,
    repeated: dict[str, bool] | None = None,
) -> Detours:
    """Inspects every state and replays the demonstrations with the agent's mistakes inserted.

    At most `in_a_row` mistakes follow each other. A demonstration whose plain replay differs from
    the recording is returned unchanged; what is found out about that is noted in `repeated`, by the
    demonstration's id, and not tried again. Raises `EnvironmentLost` if all environments are lost.
    """
    found = list(demonstrations)
    repeated = {} if repeated is None else repeated
    mistakes = [
        _Mistakes([[] for _ in d.actions], repeated.get(d.trajectory.id)) for d in demonstrations
    ]
    for turn in range(in_a_row):
        _add(policy, found, mistakes, decoding, seed=derive(seed, "detours", turn))
        room = policy.context - decoding.max_new_tokens
        found = _replay_all(policy, task, demonstrations, mistakes, room, num_parallel)
    for demonstration, own in zip(demonstrations, mistakes, strict=True):
        if own.is_repeated is not None:
            repeated[demonstration.trajectory.id] = own.is_repeated
    return Detours(
        found,
        taken=sum(len(row) for own in mistakes for row in own.before),
        refused=sum(len(own.refused) for own in mistakes),
        not_repeated=sum(own.is_repeated is False for own in mistakes),
        lost=sum(own.lost is not None for own in mistakes),
        env_steps=sum(own.env_steps for own in mistakes),
    )


@dataclass
class _Mistakes:
    """The mistakes inserted into one demonstration."""

    before: list[list[AgentAction]]
    """For each of the expert's actions the agent's actions played before it."""
    is_repeated: bool | None
    """Whether a plain replay matches the recording; unknown until a replay has diverged."""
    refused: set[tuple[int, str]] = field(default_factory=set)
    """Step and text of the mistakes that were dropped."""
    lost: Lost | None = None
    """Set if the environment was lost in every attempt."""
    env_steps: int = 0


def _add(
    policy: Policy,
    found: Sequence[RenderedTrajectory],
    mistakes: Sequence[_Mistakes],
    decoding: Decoding,
    *,
    seed: int,
) -> None:
    """Samples an action in every state and adds the wrong ones to the mistakes."""
    practised = iter(inspect(policy, found, decoding, seed=seed))
    for own in mistakes:
        for number, row in enumerate(own.before):
            for _ in row:
                next(practised)
            step = next(practised)
            (action,) = step.agent_actions
            is_right = same_action(action.text, step.expert_action)
            is_refused = own.is_repeated is False or (number, action.text) in own.refused
            if not is_right and not is_refused and own.lost is None:
                row.append(action)


def _replay_all(
    policy: Policy,
    task: Task,
    demonstrations: Sequence[RenderedTrajectory],
    mistakes: list[_Mistakes],
    room: int,
    num_parallel: int,
) -> list[RenderedTrajectory]:
    """Replays all demonstrations and drops the mistakes after which they diverge."""
    every = {d.trajectory.id: (d, m) for d, m in zip(demonstrations, mistakes, strict=True)}
    own = {name: every[name] for name in ranks.every_other(list(every))}

    def play(ids: Sequence[str], count: int) -> Generator[RenderedTrajectory | Lost, None, None]:
        # Replays wait for nothing but their environments, which compete for the cores.
        count = min(count, os.cpu_count() or 1)
        envs = [task.make_env() for _ in range(min(count, len(ids)))]
        free = SimpleQueue[TextEnv]()
        for env in envs:
            free.put(env)

        def replay(name: str) -> RenderedTrajectory | Lost:
            env = free.get()
            try:
                return _replay(policy, env, *own[name], room)
            finally:
                free.put(env)

        try:
            yield from in_threads(replay, ids, len(envs))
        finally:
            for env in envs:
                env.close()

    found = dict[str, tuple[RenderedTrajectory, _Mistakes]]()
    for outcome in track(play_all(play, list(own), num_parallel), "Detours", total=len(own)):
        if isinstance(outcome, Lost):
            logger.warning("lost: %s; the demonstration is used without mistakes", outcome)
            demonstration, without = own[outcome.item]
            without.before, without.lost = [[] for _ in without.before], outcome
            found[outcome.item] = demonstration, without
        else:
            name = outcome.trajectory.id
            found[name] = outcome, own[name][1]
    known = ranks.gathered(found)
    mistakes[:] = [known[name][1] for name in every]
    lost = [m.lost for m in mistakes if m.lost]
    if lost and len(lost) == len(mistakes):
        raise all_lost(lost, len(lost))
    return [known[name][0] for name in every]


def _replay(
    policy: Policy,
    env: TextEnv,
    demonstration: RenderedTrajectory,
    mistakes: _Mistakes,
    room: int,
) -> RenderedTrajectory | Lost:
    """Replays the demonstration until it no longer diverges.

    After each replay that does, the last mistake before the divergence is dropped. Once none is
    left there is nothing to replay.
    """
    while any(mistakes.before):
        replay = _played(policy, env, demonstration, mistakes.before)
        if isinstance(replay, Lost):
            return replay
        mistakes.env_steps += len(replay.numbers)
        if replay.is_repeated and replay.rendered.num_tokens <= room:
            return replay.rendered
        if replay.last_mistake is None:
            mistakes.is_repeated = False
        elif mistakes.is_repeated is None:
            alone = _played(policy, env, demonstration, [() for _ in mistakes.before])
            if isinstance(alone, Lost):
                return alone
            mistakes.is_repeated = alone.is_repeated
        if replay.last_mistake is None or not mistakes.is_repeated:
            mistakes.before = [[] for _ in mistakes.before]
        else:
            wrong = mistakes.before[replay.last_mistake].pop()
            mistakes.refused.add((replay.last_mistake, wrong.text))
    return demonstration


def _played(
    policy: Policy,
    env: TextEnv,
    demonstration: RenderedTrajectory,
    mistakes: Sequence[Sequence[AgentAction]],
) -> "_Replay | Lost":
    """One replay with the mistakes inserted; begun again if the environment is lost."""

    def play() -> _Replay:
        episode = Episode(env, demonstration.trajectory.id)
        replay = _Replay(policy, demonstration, episode)
        replay.play(mistakes)
        return replay

    return retried(demonstration.trajectory.id, play)


@dataclass
class _Replay:
    """A replay of a demonstration with mistakes inserted."""

    policy: Policy
    demonstration: RenderedTrajectory
    episode: Episode
    numbers: list[int] = field(default_factory=list)
    """For each action played, the expert's step that is the right one there."""
    additions: list[tuple[int, ...]] = field(default_factory=list)
    is_repeated: bool = False
    """Whether the replay matched the recording, apart from the mistakes."""
    last_mistake: int | None = None
    """The step of the demonstration before which the last mistake was played."""

    def play(self, mistakes: Sequence[Sequence[AgentAction]]) -> None:
        """Plays until the end or until an observation differs from the recording."""
        expert, episode = self.demonstration.trajectory, self.episode
        opening = self.policy.renderer.opening(episode.instruction, episode.observation)
        self.additions.append(opening)
        for number, (step, ids) in enumerate(
            zip(expert.steps, self.demonstration.actions, strict=True)
        ):
            if episode.is_over or episode.observation != step.observation:
                return
            for own in mistakes[number]:
                self.last_mistake = number
                before = episode.observation
                self._move(number, own.token_ids, own.text)
                if episode.is_over or before != episode.observation == self._expected(number):
                    return
            self._move(number, ids, step.action)
        is_same_end = episode.observation == expert.final_observation
        self.is_repeated = is_same_end and episode.is_success == bool(expert.success)

    def _expected(self, number: int) -> str:
        """The observation that followed the expert's step."""
        expert = self.demonstration.trajectory
        if number + 1 == len(expert.steps):
            return expert.final_observation
        return expert.steps[number + 1].observation

    def _move(self, number: int, ids: tuple[int, ...], text: str) -> None:
        """Plays an action of the agent or the expert where the expert's is step `number`."""
        self.numbers.append(number)
        self.episode.act(text)
        renderer = self.policy.renderer
        seen = renderer.observation(self.episode.observation)
        self.additions.append((*renderer.past(ids), *seen))

    @property
    def rendered(self) -> RenderedTrajectory:
        """The states of the replay, each with the expert's action, whoever acted there."""
        expert, actions = self.demonstration.trajectory, self.demonstration.actions
        steps = [
            expert.steps[number].model_copy(update={"observation": played.observation})
            for number, played in zip(self.numbers, self.episode.steps, strict=True)
        ]
        return replace(
            self.demonstration,
            trajectory=expert.model_copy(update={"steps": tuple(steps)}),
            additions=tuple(self.additions[:-1]),
            actions=tuple(actions[number] for number in self.numbers),
        )
