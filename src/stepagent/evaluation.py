"""Evaluation: fixed panels, score and success with intervals, likeness to the expert."""

import hashlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stepagent.bounds import COUNT, check_bounds
from stepagent.console.progress import track
from stepagent.inspection import agreement, path_logprobs, practise, step_tree
from stepagent.model.generation import Decoding
from stepagent.model.policy import Policy
from stepagent.rendering.renderer import RenderedTrajectory
from stepagent.rollout import rollout
from stepagent.statistics import Interval, mean_interval, proportion_interval
from stepagent.tasks.base import Split, Task
from stepagent.tasks.tries import Lost, all_lost
from stepagent.types import Trajectory


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How policies are evaluated in the environment."""

    decoding: Decoding = Decoding(temperature=0.0)
    """Greedy by default."""
    num_parallel: int = 8
    """Episodes that run at the same time."""

    def __post_init__(self) -> None:
        """Raises `OutOfBounds` for numbers that cannot be."""
        check_bounds(self, {"num_parallel": COUNT})


@dataclass(frozen=True)
class Evaluation:
    """A policy's episodes on a panel."""

    episodes: tuple[Trajectory, ...]
    score: Interval
    """Mean of the best score of each episode, 0 to 100."""
    success: Interval
    """Share of episodes that solved the task, 0 to 1."""
    lost: tuple[Lost, ...] = ()
    """Items of the panel whose environment was lost too often; they count nowhere."""


def choose_items(task: Task, split: Split, num_per_group: int, *, seed: int) -> tuple[str, ...]:
    """Equally many items from each group of the split (all of a smaller one), drawn by seed."""
    groups: dict[str, list[str]] = {}
    for item in task.items(split):
        groups.setdefault(task.group(item), []).append(item)
    chosen: list[str] = []
    for number, group in enumerate(groups.values()):
        order = np.random.default_rng([seed, number]).permutation(len(group))
        chosen += [group[i] for i in order[:num_per_group]]
    return tuple(chosen)


def panel_hash(items: Sequence[str]) -> str:
    """SHA-256 of the item ids in order, so that a report can prove which panel it used."""
    return hashlib.sha256("\n".join(items).encode()).hexdigest()


def summarize(episodes: Sequence[Trajectory], lost: Sequence[Lost] = ()) -> Evaluation:
    """Score and success of finished episodes; raises `EnvironmentLost` if all were lost."""
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
    """Rolls the policy out on every item of a panel; raises `EnvironmentLost` if all are lost."""
    episodes, lost = dict[str, Trajectory](), list[Lost]()
    outcomes = episodes_of(policy, task, items, config=config, seed=seed)
    for outcome in track(outcomes, description, total=len(items)):
        if isinstance(outcome, Lost):
            lost.append(outcome)
        else:
            episodes[outcome.id] = outcome
    return summarize([episodes[item] for item in items if item in episodes], lost)


def episodes_of(
    policy: Policy, task: Task, items: Sequence[str], *, config: EvaluationConfig, seed: int
) -> Generator[Trajectory | Lost, None, None]:
    """What comes of each item, as the episodes are finished."""
    outcomes = rollout(
        policy, task, items, config.decoding, seed=seed, num_parallel=config.num_parallel
    )
    for outcome in outcomes:
        yield outcome if isinstance(outcome, Lost) else outcome.trajectory


@dataclass(frozen=True)
class Likeness:
    """How close a policy is to the expert on the expert's own states."""

    agreement: float
    """Share of steps whose greedy action is the expert's, 0 to 1."""
    expert_logprob: float
    """Mean log-probability of the expert's actions, in nats for each action."""


def likeness(
    policy: Policy,
    held_out: Sequence[RenderedTrajectory],
    *,
    max_new_tokens: int,
) -> Likeness:
    """Measures the policy on held-out expert trajectories."""
    greedy = Decoding(max_new_tokens=max_new_tokens, temperature=0.0)
    logprobs = path_logprobs(policy, [step_tree(d) for d in held_out])
    return Likeness(
        agreement=agreement(practise(policy, held_out, greedy, seed=0)),
        expert_logprob=float(torch.cat(logprobs).mean()),
    )
