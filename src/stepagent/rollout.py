"""Rollouts: the policy acts in environments of a task, many episodes at a time.

Every running episode keeps its keys and values from turn to turn, so a turn forwards only what is
new. The token ids of an episode are those that were fed and sampled; nothing is decoded and encoded
again.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from stepagent.backends.generation import Decoding, RunningEpisodes, random_numbers
from stepagent.policy import Policy
from stepagent.progress import track
from stepagent.tasks.base import EnvironmentLost, Task, TextEnv
from stepagent.types import Step, Trajectory

logger = logging.getLogger(__name__)

MAX_TRIES = 3
"""How often an episode is begun before a lost environment ends the rollout."""


@dataclass(frozen=True)
class Episode:
    """One finished episode, with the token ids it consisted of."""

    trajectory: Trajectory
    observations: tuple[tuple[int, ...], ...]
    """Ids fed before each action."""
    actions: tuple[tuple[int, ...], ...]
    """Ids sampled for each action."""


@dataclass
class _Running:
    """An episode in progress."""

    item: str
    env: TextEnv
    instruction: str = ""
    observation: str = ""
    steps: list[Step] = field(default_factory=list)
    fed: list[tuple[int, ...]] = field(default_factory=list)
    sampled: list[tuple[int, ...]] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    unread: tuple[int, ...] = ()
    """The last token of the last action, which the cache has not seen yet."""
    num_tokens: int = 0
    tries: int = 0
    terminated: bool = False
    truncated: bool = False

    @property
    def is_over(self) -> bool:
        return self.terminated or self.truncated


def rollout(
    policy: Policy,
    task: Task,
    items: Sequence[str],
    decoding: Decoding,
    *,
    seed: int,
    num_parallel: int = 8,
    description: str = "Rollout",
) -> list[Episode]:
    """One episode for each item, in the order of the items.

    An environment that is lost has its episode repeated; `EnvironmentLost` is raised only after
    `MAX_TRIES` of them. An episode that outgrows the policy's context ends truncated.
    """
    finished: dict[str, Episode] = {}
    room = policy.context - decoding.max_new_tokens - 1  # an action and the token that closes it
    waiting = list(reversed(items))
    running = [
        _Running(waiting.pop(), task.make_env()) for _ in range(min(num_parallel, len(items)))
    ]
    cache = RunningEpisodes(policy.model, len(running))
    bar = track(range(len(items)), description)
    with ThreadPoolExecutor(max_workers=8) as threads:
        try:
            list(threads.map(lambda episode: _begin(episode, policy, room), running))
            while running:
                _turn(policy, running, cache, decoding, seed, room, threads)
                keep = []
                for row, episode in enumerate(running):
                    if episode.is_over:
                        finished[episode.item] = _finish(episode, task.name)
                        next(bar)
                        if waiting:
                            running[row] = _Running(waiting.pop(), episode.env)
                            _begin(running[row], policy, room)
                            cache.restart(row)
                            keep.append(row)
                        else:
                            episode.env.close()
                    else:
                        if not episode.steps:  # begun again after its environment was lost
                            cache.restart(row)
                        keep.append(row)
                if len(keep) < len(running):
                    running = [running[row] for row in keep]
                    cache.keep_rows(keep)
        finally:
            for episode in running:
                episode.env.close()
    next(bar, None)
    return [finished[item] for item in items]


def _begin(episode: _Running, policy: Policy, room: int) -> None:
    """Starts the episode from its first observation, again if it had begun before."""
    while True:
        episode.tries += 1
        try:
            episode.observation, episode.info = episode.env.reset(options={"item": episode.item})
            break
        except EnvironmentLost:
            if episode.tries >= MAX_TRIES:
                raise
            logger.warning("%s: environment lost at reset; trying again", episode.item)
    episode.instruction = episode.info["instruction"]
    ids = policy.renderer.opening(episode.instruction, episode.observation)
    if len(ids) > room:
        raise ValueError(
            f"{episode.item}: its first state has {len(ids)} tokens, the policy's context of "
            f"{policy.context} leaves room for {room}"
        )
    episode.steps, episode.sampled, episode.fed = [], [], [ids]
    episode.unread, episode.num_tokens = (), len(ids)


def _turn(
    policy: Policy,
    running: Sequence[_Running],
    cache: RunningEpisodes,
    decoding: Decoding,
    seed: int,
    room: int,
    threads: ThreadPoolExecutor,
) -> None:
    """One action and its observation in every running episode."""
    uniform = torch.stack(
        [random_numbers(seed, e.item, len(e.steps), count=decoding.max_new_tokens) for e in running]
    )
    fed = [(*e.unread, *e.fed[-1]) for e in running]
    end_id = policy.renderer.end_id
    actions = cache.act(fed, decoding, end_id, uniform)
    for episode, action in zip(running, actions, strict=True):
        episode.sampled.append(action.token_ids)
        episode.num_tokens += len(action.token_ids)
        episode.unread = action.token_ids[-1:]
    list(threads.map(lambda episode: _act(episode, policy, room), running))


def _act(episode: _Running, policy: Policy, room: int) -> None:
    text = policy.renderer.action_text(episode.sampled[-1])
    try:
        after, reward, episode.terminated, episode.truncated, episode.info = episode.env.step(text)
    except EnvironmentLost:
        if episode.tries >= MAX_TRIES:
            raise
        logger.warning("%s: environment lost; repeating the episode", episode.item)
        _begin(episode, policy, room)
        return
    # An empty action is a real one to the environment, but no record may have it.
    episode.steps.append(
        Step(observation=episode.observation, action=text or "(nothing)", reward=float(reward))
    )
    episode.observation = after
    ids = policy.renderer.observation(after)
    if episode.unread != (policy.renderer.end_id,):
        # The length limit cut the action off: its turn is closed for it.
        ids = (policy.renderer.end_id, *ids)
    episode.fed.append(ids)
    episode.num_tokens += len(ids)
    if not episode.is_over and episode.num_tokens > room:
        episode.truncated = True


def _finish(episode: _Running, task_name: str) -> Episode:
    return Episode(
        trajectory=Trajectory(
            id=episode.item,
            task=task_name,
            instruction=episode.instruction,
            steps=tuple(episode.steps),
            final_observation=episode.observation,
            score=float(episode.info["score"]),
            success=bool(episode.info["success"]),
            truncated=episode.truncated,
        ),
        observations=tuple(episode.fed[:-1]),
        actions=tuple(episode.sampled),
    )
