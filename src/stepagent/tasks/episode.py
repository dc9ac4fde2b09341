"""The base class of our text environments: items, the step limit, the end of an episode.

A task implements `begin` and `act`; `EpisodeEnv` turns them into a `gymnasium.Env`. `follow` plays
an expert's actions and returns the trajectory.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from pydantic import JsonValue

from stepagent.tasks.base import ExpertFailed, Task, TextEnv
from stepagent.tasks.playing import Episode
from stepagent.types import Trajectory

MAX_ACTION_CHARS = 10_000
MAX_OBSERVATION_CHARS = 1_000_000


class AnyText(spaces.Text):
    """All strings up to a length; samples are printable ASCII, tabs and newlines."""

    def __init__(self, max_length: int) -> None:
        """A space of at most `max_length` characters, the empty string included."""
        charset = "".join(chr(code) for code in range(32, 127)) + "\t\n"
        super().__init__(max_length, min_length=0, charset=charset)

    def contains(self, x: Any) -> bool:
        """Whether `x` is a string of at most `max_length` characters, in any script."""
        return isinstance(x, str) and len(x) <= self.max_length


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of an action."""

    observation: str
    score: float
    """Best of the episode so far, 0 to 100."""
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    """Whether the engine's own limit was reached; `EpisodeEnv` counts actions itself."""
    success: bool = False
    details: Mapping[str, JsonValue] = field(default_factory=dict)
    """Input of the benchmark's own metrics; stored with the episode."""


class EpisodeEnv(gym.Env[str, str]):
    """An environment for the items of a task; `reset(options={"item": ID})` chooses the item.

    Without an item, one of the training items is drawn by the seed. `step` accepts any text and
    raises `gymnasium.error.ResetNeeded` if no episode is running. An episode is truncated after
    `step_limit` actions; None means no limit.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  # gymnasium's own declaration

    def __init__(self, task: Task, step_limit: int | None) -> None:
        """An environment of the task."""
        self.observation_space = AnyText(MAX_OBSERVATION_CHARS)
        self.action_space = AnyText(MAX_ACTION_CHARS)
        self.step_limit = step_limit
        self._task = task
        self._actions = 0
        self._running = False

    @abstractmethod
    def begin(self, item: str) -> tuple[str, str]:
        """Starts the item; returns its instruction and the first observation."""

    @abstractmethod
    def act(self, action: str) -> Outcome:
        """Plays the action in the running episode."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """The first observation; info has `instruction`, `item`, `score` and `success`."""
        super().reset(seed=seed)
        item = (options or {}).get("item")
        if item is None:
            items = self._task.items("train")
            item = items[int(self.np_random.integers(len(items)))]
        self._running = False
        instruction, observation = self.begin(item)
        self._actions, self._running = 0, True
        info = {"instruction": instruction, "item": item, "score": 0.0, "success": False}
        return observation, info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Plays the action; one that the engine does not understand only costs a step.

        Actions are cut off after `MAX_ACTION_CHARS` characters.
        """
        if not self._running:
            raise gym.error.ResetNeeded("the episode is over or has not begun: call reset first")
        self._running = False  # stays so if the engine is lost
        self._actions += 1
        # Engines may be slow with more; only clients of a task server send actions this long.
        outcome = self.act(action[:MAX_ACTION_CHARS])
        at_limit = self.step_limit is not None and self._actions >= self.step_limit
        truncated = not outcome.terminated and (outcome.truncated or at_limit)
        self._running = not (outcome.terminated or truncated)
        info = {
            "score": outcome.score,
            "success": outcome.success,
            "details": dict(outcome.details),
        }
        return outcome.observation, outcome.reward, outcome.terminated, truncated, info

    def close(self) -> None:
        """Ends the episode; the environment can still be reset."""
        self._running = False


def follow(
    task: Task,
    env: TextEnv,
    item: str,
    choose: Callable[[str], str | None],
    metadata: Mapping[str, JsonValue],
) -> Trajectory:
    """Plays the action that `choose` returns for each observation; closes `env` in the end.

    Stops when the episode is over or `choose` returns None. Raises `ExpertFailed` if the item is
    not solved then, or if an action is empty. Rewards are those of the environment.
    """
    try:
        episode = Episode(env, item)
        while not episode.is_over and (action := choose(episode.observation)) is not None:
            if not action.strip():
                raise ExpertFailed(
                    f"{item}: the expert's action {len(episode.steps) + 1} is empty; expected text"
                )
            episode.act(action)
    finally:
        env.close()
    if not episode.is_success:
        raise ExpertFailed(
            f"{item}: the expert's {len(episode.steps)} actions end with score "
            f"{episode.info['score']:g}, not solved"
        )
    return episode.trajectory(task.name, metadata)
