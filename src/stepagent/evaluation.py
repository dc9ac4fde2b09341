"""Evaluation: fixed panels of items, score and success with intervals, likeness to the expert."""

import hashlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stepagent.bounds import COUNT, check_bounds
from stepagent.inspection import agreement, inspect, path_logprobs, step_tree
from stepagent.model.generation import Decoding
from stepagent.model.policy import Policy
from stepagent.rendering.renderer import RenderedTrajectory
from stepagent.rollout import outcomes_by_item, rollout
from stepagent.statistics import Interval, mean_interval, proportion_interval
from stepagent.tasks.base import Split, Task
from stepagent.tasks.tries import Lost, all_lost
from stepagent.types import Trajectory


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How policies are evaluated in the environment."""

    decoding: Decoding = Decoding(temperature=0.0)
    """How actions are sampled; greedy by default."""
    num_parallel: int = 8
    """Episodes played in parallel."""

    def __post_init__(self) -> None:
        """Raises `OutOfBounds` for numbers out of range."""
        check_bounds(self, {"num_parallel": COUNT})


@dataclass(frozen=True)
class Evaluation:
    """A policy's episodes on a panel."""

    episodes: tuple[Trajectory, ...]
    score: Interval
    """Mean over the episodes' best scores, 0 to 100."""
    success: Interval
    """Share of episodes that solved their item, 0 to 1."""
    lost: tuple[Lost, ...] = ()
    """Items whose environment was lost in every attempt; they are not counted."""


def choose_items(task: Task, split: Split, num_per_group: int, *, seed: int) -> tuple[str, ...]:
    """Draws `num_per_group` items from each group of the split, or all of a smaller group."""
    groups: dict[str, list[str]] = {}
    for item in task.items(split):
        groups.setdefault(task.group(item), []).append(item)
    chosen: list[str] = []
    for number, group in enumerate(groups.values()):
        order = np.random.default_rng([seed, number]).permutation(len(group))
        chosen += [group[i] for i in order[:num_per_group]]
    return tuple(chosen)


def panel_hash(items: Sequence[str]) -> str:
    """SHA-256 of the item ids in order, by which reports identify the panel."""
    return hashlib.sha256("\n".join(items).encode()).hexdigest()


def summarize(episodes: Sequence[Trajectory], lost: Sequence[Lost] = ()) -> Evaluation:
    """Score and success of episodes; raises `EnvironmentLost` if every environment was lost."""
    if lost and not episodes:
        raise all_lost(lost, len(lost))
    scores = [e.score for e in episodes if e.score is not None]
    successes = sum(bool(e.success) for e in episodes)
    return Evaluation(
        episodes=tuple(episodes),
        score=mean_interval(scores),
        success=proportion_interval(successes, len(episodes)),
        lost=tuple(lost),
    )


def evaluate(
    policy: Policy,
    task: Task,
    items: Sequence[str],
    config: EvaluationConfig,
    *,
    seed: int,
    description: str = "Evaluation",
) -> Evaluation:
    """Plays one episode of every item of a panel.

    Raises `EnvironmentLost` if every environment is lost, and whatever `rollout` raises.
    """
    outcomes = outcomes_by_item(
        policy,
        task,
        items,
        config.decoding,
        seed=seed,
        num_parallel=config.num_parallel,
        description=description,
    )
    lost = [outcome for outcome in outcomes.values() if isinstance(outcome, Lost)]
    episodes = {i: o.trajectory for i, o in outcomes.items() if not isinstance(o, Lost)}
    return summarize([episodes[item] for item in items if item in episodes], lost)


def episodes_of(
    policy: Policy, task: Task, items: Sequence[str], *, config: EvaluationConfig, seed: int
) -> Generator[Trajectory | Lost, None, None]:
    """Yields the trajectory of each item, or its loss, as the episodes finish."""
    outcomes = rollout(
        policy, task, items, config.decoding, seed=seed, num_parallel=config.num_parallel
    )
    for outcome in outcomes:
        yield outcome if isinstance(outcome, Lost) else outcome.trajectory


@dataclass(frozen=True)
class Likeness:
    """How close a policy is to the expert in the expert's states."""

    agreement: float
    """Share of steps whose greedy action equals the expert's, 0 to 1."""
    expert_logprob: float
    """Mean log-probability of the expert's actions, in nats per action."""


def likeness(
    policy: Policy,
    held_out: Sequence[RenderedTrajectory],
    *,
    max_new_tokens: int,
) -> Likeness:
    """Measures the policy's likeness to the expert on held-out trajectories."""
    greedy = Decoding(max_new_tokens=max_new_tokens, temperature=0.0)
    logprobs = path_logprobs(policy, [step_tree(d) for d in held_out])
    return Likeness(
        agreement=agreement(inspect(policy, held_out, greedy, seed=0)),
        expert_logprob=float(torch.cat(logprobs).mean()),
    )
