"""One session of a served task: an environment in a thread of its own, in OpenEnv's terms."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypeVar

import gymnasium as gym
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from stepagent.console.printable import printable
from stepagent.tasks.base import (
    EnvironmentFailed,
    EnvironmentLost,
    Split,
    Task,
    TaskDataError,
    TextEnv,
)

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class TextAction(BaseModel):
    """What the agent does."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str
    metadata: dict[str, JsonValue] = {}
    """OpenEnv's own clients send it; it is not read."""


class TextObservation(BaseModel):
    """What is seen after an action."""

    text: str


class FirstObservation(TextObservation):
    """What is seen at the start, and what is to be done."""

    instruction: str


class EpisodeState(BaseModel):
    """Where a session is."""

    episode_id: str | None = None
    step_count: int = 0
    item: str | None = None


class ResetRequest(BaseModel):
    """Which item: by its id, or its place in a split; else the seed chooses a training item."""

    model_config = ConfigDict(extra="forbid", strict=True)

    seed: Annotated[int, Field(ge=0)] | None = None
    episode_id: Annotated[str, Field(max_length=255)] | None = None
    item: str | None = None
    split: Split | None = None
    index: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _check_choice(self) -> "ResetRequest":
        if (self.split is None) != (self.index is None):
            raise ValueError("split and index go together")
        if self.item is not None and self.split is not None:
            raise ValueError("give either item, or split and index")
        return self


class StepRequest(BaseModel):
    """OpenEnv's body of a step over HTTP."""

    action: TextAction
    timeout_s: Annotated[float, Field(gt=0)] | None = None
    request_id: Annotated[str, Field(max_length=255)] | None = None


class Refused(ValueError):
    """There is no such item."""


class ServedSession:
    """An environment of the task; everything is done to it in one thread."""

    def __init__(self, task: Task) -> None:
        """Makes the environment at the first reset."""
        self.state = EpisodeState()
        self._task = task
        self._env: TextEnv | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="openenv-session")

    async def reset(self, request: ResetRequest) -> dict[str, Any]:
        """Starts an episode; raises `Refused` if there is no such item."""
        return await self._in_thread(lambda: self._reset(request))

    async def step(self, action: TextAction) -> dict[str, Any]:
        """Does the action."""
        return await self._in_thread(lambda: self._step(action))

    async def close(self) -> None:
        """Closes the environment, after what it is at."""
        try:
            await self._in_thread(self._close)
        finally:
            self._thread.shutdown(wait=False)

    async def _in_thread(self, do: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, do)

    def _reset(self, request: ResetRequest) -> dict[str, Any]:
        item = request.item
        if request.split is not None and request.index is not None:
            items = self._task.items(request.split)
            if request.index >= len(items):
                raise Refused(f"split {request.split} has {len(items)} items, no {request.index}")
            item = items[request.index]
        if self._env is None:
            self._env = self._task.make_env()
        try:
            options = None if item is None else {"item": item}
            observation, info = self._env.reset(seed=request.seed, options=options)
        except ValueError as error:
            raise Refused(short(str(error))) from error
        self.state = EpisodeState(episode_id=request.episode_id, item=info["item"])
        seen = FirstObservation(text=observation, instruction=info["instruction"])
        return _answer(seen, None, False, {"item": info["item"], **_result(info)})

    def _step(self, action: TextAction) -> dict[str, Any]:
        if self._env is None:
            raise gym.error.ResetNeeded("the episode has not begun: send reset first")
        observation, reward, terminated, truncated, info = self._env.step(action.text)
        self.state.step_count += 1
        metadata = {**_result(info), "truncated": truncated, "details": info.get("details", {})}
        seen = TextObservation(text=observation)
        return _answer(seen, float(reward), terminated or truncated, metadata)

    def _close(self) -> None:
        if self._env is not None:
            self._env.close()


def short(message: str) -> str:
    """A message that does not send back all that a player sent."""
    return printable(message, limit=300)


def failure(error: Exception) -> str:
    """What a player may know of an error; the rest of what is not ours goes to the log."""
    own = isinstance(error, EnvironmentLost | TaskDataError | gym.error.ResetNeeded)
    if own and not isinstance(error, EnvironmentFailed):
        return short(str(error))
    logger.error("the environment failed", exc_info=error)
    cause = type(error.__cause__ or error).__name__
    return f"the environment failed with {cause}; the server's log says more"


def _result(info: Mapping[str, Any]) -> dict[str, Any]:
    return {"score": float(info["score"]), "success": bool(info["success"])}


def _answer(
    seen: TextObservation, reward: float | None, done: bool, metadata: dict[str, Any]
) -> dict[str, Any]:
    """OpenEnv's form of a result.

    Its own server repeats the metadata inside the observation, which players show to the agent:
    here the score stays outside.
    """
    return {
        "observation": seen.model_dump(),
        "reward": reward,
        "done": done,
        "metadata": metadata,
    }
