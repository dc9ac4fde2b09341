"""One session of a served task: an environment in its own thread, in OpenEnv's format."""

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
    """The agent's action."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str
    metadata: dict[str, JsonValue] = {}
    """Sent by OpenEnv's own clients; ignored."""


class TextObservation(BaseModel):
    """The observation after an action."""

    text: str


class FirstObservation(TextObservation):
    """The first observation, and the instruction."""

    instruction: str


class EpisodeState(BaseModel):
    """State of a session's episode."""

    episode_id: str | None = None
    step_count: int = 0
    item: str | None = None


class ResetRequest(BaseModel):
    """Chooses an item by id or by index in a split; otherwise the seed draws a training item."""

    model_config = ConfigDict(extra="forbid", strict=True)

    seed: Annotated[int, Field(ge=0)] | None = None
    episode_id: Annotated[str, Field(max_length=255)] | None = None
    item: str | None = None
    split: Split | None = None
    index: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _check_choice(self) -> "ResetRequest":
        if (self.split is None) != (self.index is None):
            raise ValueError("expected split and index together")
        if self.item is not None and self.split is not None:
            raise ValueError("expected either item, or split and index")
        return self


class StepRequest(BaseModel):
    """Body of OpenEnv's request for a step over HTTP."""

    action: TextAction
    timeout_s: Annotated[float, Field(gt=0)] | None = None
    request_id: Annotated[str, Field(max_length=255)] | None = None


class Refused(ValueError):
    """The requested item does not exist."""


class ServedSession:
    """An environment of the task, used from a single thread of its own."""

    def __init__(self, task: Task) -> None:
        """The environment is made at the first reset."""
        self.state = EpisodeState()
        self._task = task
        self._env: TextEnv | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="openenv-session")

    async def reset(self, request: ResetRequest) -> dict[str, Any]:
        """Starts an episode; raises `Refused` if there is no such item."""
        return await self._in_thread(lambda: self._reset(request))

    async def step(self, action: TextAction) -> dict[str, Any]:
        """Takes a step in the environment."""
        return await self._in_thread(lambda: self._step(action))

    async def close(self) -> None:
        """Closes the environment after the call in progress."""
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
                raise Refused(
                    f"split {request.split} has {len(items)} items; expected an index below that, "
                    f"got {request.index}"
                )
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
            raise gym.error.ResetNeeded("no episode has begun; send reset first")
        observation, reward, terminated, truncated, info = self._env.step(action.text)
        self.state.step_count += 1
        metadata = {**_result(info), "truncated": truncated, "details": info.get("details", {})}
        seen = TextObservation(text=observation)
        return _answer(seen, float(reward), terminated or truncated, metadata)

    def _close(self) -> None:
        if self._env is not None:
            self._env.close()


def short(message: str) -> str:
    """A message cut short, so that it does not repeat everything that a player sent."""
    return printable(message, limit=300)


def failure(error: Exception) -> str:
    """What a player is told about an error; errors that are not ours are logged in full."""
    own = isinstance(error, EnvironmentLost | TaskDataError | gym.error.ResetNeeded)
    if own and not isinstance(error, EnvironmentFailed):
        return short(str(error))
    logger.error("the environment failed", exc_info=error)
    cause = type(error.__cause__ or error).__name__
    return f"the environment failed with {cause}; see the server's log"


def _result(info: Mapping[str, Any]) -> dict[str, Any]:
    return {"score": float(info["score"]), "success": bool(info["success"])}


def _answer(
    seen: TextObservation, reward: float | None, done: bool, metadata: dict[str, Any]
) -> dict[str, Any]:
    """A result in OpenEnv's format.

    OpenEnv's own server repeats the metadata inside the observation, which players show to the
    agent; here the score stays outside of it.
    """
    return {
        "observation": seen.model_dump(),
        "reward": reward,
        "done": done,
        "metadata": metadata,
    }
