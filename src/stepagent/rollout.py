"""Rollouts: the policy acts in environments of a task, many episodes at a time.

Every running episode keeps its keys and values from turn to turn, so a turn forwards only what is
new. The token ids of an episode are those that were fed and sampled; nothing is decoded and encoded
again. What an episode comes to does not depend on which others run beside it.
"""

import logging
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from stepagent.model.forward import OutOfMemory
from stepagent.model.generation import Decoding, RunningEpisodes, random_numbers
from stepagent.model.policy import Policy, PolicyError
from stepagent.rendering.renderer import RenderedTrajectory
from stepagent.tasks.base import NOTHING, EnvironmentLost, Task, TextEnv
from stepagent.tasks.tries import Lost, Tries, play_all
from stepagent.types import Step, Trajectory

logger = logging.getLogger(__name__)


@dataclass
class _Running:
    """An episode in progress."""

    item: str
    env: TextEnv
    tries: Tries
    instruction: str = ""
    observation: str = ""
    steps: list[Step] = field(default_factory=list)
    additions: list[tuple[int, ...]] = field(default_factory=list)
    """As in `RenderedTrajectory`, up to the state to act in."""
    actions: list[tuple[int, ...]] = field(default_factory=list)
    """Ids sampled for each action."""
    info: dict[str, Any] = field(default_factory=dict)
    terminated: bool = False
    truncated: bool = False
    lost: Lost | None = None

    @property
    def is_over(self) -> bool:
        return self.terminated or self.truncated or self.lost is not None

    def state(self, ask: tuple[int, ...]) -> list[int]:
        """All that is read before the next action."""
        return [*(token for addition in self.additions for token in addition), *ask]


def rollout(
    policy: Policy,
    task: Task,
    items: Sequence[str],
    decoding: Decoding,
    *,
    seed: int,
    num_parallel: int = 8,
) -> Generator[RenderedTrajectory | Lost, None, None]:
    """One episode for each item, as they are finished.

    An environment that is lost has its episode repeated; one that is lost again and again costs
    its own episode only. An episode that outgrows the policy's context ends truncated. Where memory
    runs out, fewer episodes run at the same time; raises `OutOfMemory` if one is too many.
    """
    play = partial(_rollout, policy, task, decoding, seed)
    return play_all(play, items, num_parallel)


def _rollout(
    policy: Policy,
    task: Task,
    decoding: Decoding,
    seed: int,
    items: Sequence[str],
    num_parallel: int,
) -> Generator[RenderedTrajectory | Lost, None, None]:
    room = policy.context - decoding.max_new_tokens - 1  # an action and the token that closes it
    waiting = list(reversed(items))

    def started(env: TextEnv) -> _Running:
        item = waiting.pop()
        return _Running(item, env, Tries(item))

    running = [started(task.make_env()) for _ in range(min(num_parallel, len(items)))]
    cache = RunningEpisodes(policy.layers, len(running))
    with ThreadPoolExecutor(max_workers=8) as threads:
        try:
            list(threads.map(lambda episode: _begin(episode, policy, room), running))
            while running:
                for row, episode in enumerate(running):
                    while episode.is_over:
                        yield episode.lost or _finish(episode, task.name, policy)
                        if not waiting:
                            break
                        episode = running[row] = started(episode.env)
                        _begin(episode, policy, room)
                keep = [row for row, episode in enumerate(running) if not episode.is_over]
                if len(keep) < len(running):
                    _close(episode for episode in running if episode.is_over)
                    running = [running[row] for row in keep]
                    cache.keep_rows(keep)
                if running and not _turn(policy, running, cache, decoding, seed, room, threads):
                    if len(running) == 1:
                        raise OutOfMemory(
                            f"{running[0].item}: out of memory with a single episode; a smaller "
                            "model or a shorter --step-limit would need less"
                        )
                    put_back = running[(len(running) + 1) // 2 :]
                    waiting += [episode.item for episode in put_back]
                    _close(put_back)
                    running = running[: -len(put_back)]
                    cache = RunningEpisodes(policy.layers, len(running))
                    if torch.cuda.is_available():
                        torch.cuda.empty_cache()
                    logger.info("out of memory: from now on %d episodes at once", len(running))
        finally:
            _close(running)


def _close(episodes: Iterable[_Running]) -> None:
    for episode in episodes:
        episode.env.close()


def _begin(episode: _Running, policy: Policy, room: int) -> None:
    """Starts the episode from its first observation, again if it had begun before."""
    while True:
        try:
            episode.observation, episode.info = episode.env.reset(options={"item": episode.item})
            break
        except EnvironmentLost as error:
            if lost := episode.tries.failed(error):
                episode.lost = lost
                return
    episode.instruction = episode.info["instruction"]
    opening = policy.renderer.opening(episode.instruction, episode.observation)
    episode.steps, episode.actions, episode.additions = [], [], [opening]
    if (length := len(episode.state(policy.renderer.ask))) > room:
        raise PolicyError(
            f"{episode.item}: its first state has {length} tokens, the policy's context of "
            f"{policy.context} leaves room for {max(room, 0)} beside an action"
        )


def _turn(
    policy: Policy,
    running: Sequence[_Running],
    cache: RunningEpisodes,
    decoding: Decoding,
    seed: int,
    room: int,
    threads: ThreadPoolExecutor,
) -> bool:
    """One action and its observation in every running episode; False if memory ran out before."""
    uniform = torch.stack(
        [random_numbers(seed, e.item, len(e.steps), count=decoding.max_new_tokens) for e in running]
    )
    states = [episode.state(policy.renderer.ask) for episode in running]
    try:
        actions = cache.act(states, decoding, policy.renderer.end_id, uniform)
    except torch.OutOfMemoryError:
        return False
    for episode, action in zip(running, actions, strict=True):
        episode.actions.append(action.token_ids)
    list(threads.map(lambda episode: _act(episode, policy, room), running))
    return True


def _act(episode: _Running, policy: Policy, room: int) -> None:
    thought, text = policy.renderer.parse(episode.actions[-1])
    try:
        after, reward, episode.terminated, episode.truncated, episode.info = episode.env.step(text)
    except EnvironmentLost as error:
        episode.lost = episode.tries.failed(error)
        if episode.lost is None:
            _begin(episode, policy, room)
        return
    # An empty action is a real one to the environment, but no record may have it.
    action = text or NOTHING
    episode.steps.append(
        Step(observation=episode.observation, action=action, thought=thought, reward=float(reward))
    )
    episode.observation = after
    past = policy.renderer.past(episode.actions[-1])
    episode.additions.append((*past, *policy.renderer.observation(after)))
    if not episode.is_over and len(episode.state(policy.renderer.ask)) > room:
        episode.truncated = True


def _finish(episode: _Running, task_name: str, policy: Policy) -> RenderedTrajectory:
    return RenderedTrajectory(
        trajectory=Trajectory(
            id=episode.item,
            task=task_name,
            instruction=episode.instruction,
            steps=tuple(episode.steps),
            final_observation=episode.observation,
            score=float(episode.info["score"]),
            success=bool(episode.info["success"]),
            truncated=episode.truncated,
            metadata={"details": details} if (details := episode.info.get("details")) else {},
        ),
        additions=tuple(episode.additions[:-1]),
        ask=policy.renderer.ask,
        actions=tuple(episode.actions),
    )
