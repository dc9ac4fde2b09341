"""Rollouts with kept keys and values against encoding the whole history again in each step.

Eight episodes run in parallel in an environment that says what the expert saw, whatever the action
is. The other side gets the states of our episodes and writes the same actions with `generate`: for
each step one left-padded batch of all histories.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium as gym

from stepagent.rendering.renderer import RenderedTrajectory
from stepagent.rollout import rollout
from stepagent.tasks.base import Split, TextEnv
from stepagent.tasks.tries import Lost
from stepagent.types import Trajectory

from .generate import GREEDY, Action, check_actions, generate
from .material import SEED, Setup, open_plain, open_policy
from .measuring import TIE_TOLERANCE, Row, in_turn, ratio, seconds

TITLE = "Rollouts beside encoding the history again in each step: 8 scripted episodes"
EPISODES = 8


class Script(gym.Env[str, str]):
    """Shows the observations of a trajectory."""

    def __init__(self, trajectory: Trajectory) -> None:
        self.trajectory = trajectory
        self.number = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """The first observation; each episode has an instruction of its own."""
        self.number = 0
        item = options["item"] if options else ""
        info = {"instruction": f"{self.trajectory.instruction} ({item})", "score": 0.0}
        return self.trajectory.steps[0].observation, info | {"success": False}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """The next observation, whatever the action is."""
        self.number += 1
        is_over = self.number == len(self.trajectory.steps)
        seen = "" if is_over else self.trajectory.steps[self.number].observation
        return seen or "The end.", 0.0, is_over, False, {"score": 0.0, "success": False}


class Scripted:
    """Episodes of one script."""

    name = "scripted"

    def __init__(self, trajectory: Trajectory) -> None:
        self.trajectory = trajectory

    def items(self, split: Split) -> Sequence[str]:
        """The episodes."""
        return [str(number) for number in range(EPISODES)]

    def group(self, item: str) -> str:
        """All are of one kind."""
        return self.name

    def make_env(self) -> TextEnv:
        """An episode's environment."""
        return Script(self.trajectory)

    def expert(self, item: str) -> Trajectory:
        """What the script was written from."""
        return self.trajectory

    def metrics(self, episodes: Sequence[Trajectory]) -> dict[str, float]:
        """None."""
        return {}

    def facts(self) -> dict[str, Any]:
        """None."""
        return {}

    def close(self) -> None:
        """Nothing runs."""


def answer(setup: Setup) -> Iterator[Row]:
    """The small model in float32 on both trajectories; the real one on the short one.

    What takes long is timed once.
    """
    agent, real = setup.agents[setup.small], setup.agents[setup.real]
    for trajectory, repeats in ((setup.short, setup.repeats), (setup.long, 1)):
        yield {"model": "small"} | compare(agent, trajectory, "float32", repeats)
    yield {"model": setup.real.name} | compare(real, setup.short, setup.precisions[-1], 1)


def compare(source: Path, trajectory: Trajectory, precision: str, repeats: int) -> Row:
    """Both sides in turn."""
    task = Scripted(trajectory)
    policy = open_policy(source, precision)
    model = open_plain(source, None, precision)
    end_id = policy.renderer.end_id

    def ours() -> list[RenderedTrajectory]:
        found = rollout(policy, task, task.items("train"), GREEDY, seed=SEED)
        return [episode for episode in found if not isinstance(episode, Lost)]

    episodes = ours()
    histories = list(zip(*(e.states for e in episodes), strict=True))
    played = list(zip(*(e.actions for e in episodes), strict=True))
    again: list[list[Action]] = []

    def theirs() -> None:
        again[:] = [generate(model, states, len(states), end_id) for states in histories]

    found = in_turn({"ours": lambda: seconds(ours), "again": lambda: seconds(theirs)}, repeats)
    ties = sum(
        check_actions(policy, states, mine, other, TIE_TOLERANCE[precision])
        for states, mine, other in zip(histories, played, again, strict=True)
    )
    return {
        "precision": precision,
        "steps": len(histories),
        "longest": max(map(len, histories[-1])),
        "seconds": round(median(found["ours"]), 3),
        "again": round(median(found["again"]), 3),
        "times": ratio(found["ours"], found["again"]),
        "ties": ties,
        "all": found,
    }
