"""An episode in progress: the one place that resets, steps and records an environment."""

from collections.abc import Mapping

from pydantic import JsonValue

from stepagent.tasks.base import NOTHING, TextEnv
from stepagent.types import Step, Trajectory


class Episode:
    """One item in an environment, from its first observation on."""

    def __init__(self, env: TextEnv, item: str) -> None:
        """Resets the environment to the item; raises what the environment raises."""
        self.item = item
        self._env = env
        self.observation, self.info = env.reset(options={"item": item})
        """The latest observation, not yet part of a step, and its info."""
        self.instruction: str = self.info["instruction"]
        self.steps: list[Step] = []
        self.terminated = False
        self.truncated = False

    @property
    def is_over(self) -> bool:
        """Whether the environment or the player ended it."""
        return self.terminated or self.truncated

    @property
    def is_success(self) -> bool:
        """Whether the task is solved so far."""
        return bool(self.info["success"])

    def act(self, action: str, thought: str = "") -> None:
        """Plays an action, which may be empty, and records the step; raises what `step` raises."""
        after, reward, self.terminated, self.truncated, self.info = self._env.step(action)
        # The environment is given the empty action itself, but a record may not hold one.
        step = Step(
            observation=self.observation,
            action=action or NOTHING,
            thought=thought,
            reward=float(reward),
        )
        self.steps.append(step)
        self.observation = after

    def truncate(self) -> None:
        """Ends the episode here, at a limit of the player's own."""
        self.truncated = True

    def trajectory(self, task: str, metadata: Mapping[str, JsonValue]) -> Trajectory:
        """The record of the episode; at least one action must have been played."""
        return Trajectory(
            id=self.item,
            task=task,
            instruction=self.instruction,
            steps=tuple(self.steps),
            final_observation=self.observation,
            score=float(self.info["score"]),
            success=self.is_success,
            truncated=self.truncated,
            metadata=dict(metadata),
        )
