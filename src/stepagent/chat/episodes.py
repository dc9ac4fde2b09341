"""Prompted policies: chat models act in environments of a task, as baselines or as experts.

What a local policy meets, a prompted one meets too: any action is sent, also an empty one or one
that was cut off, and costs a step. Only after `MAX_SILENT` replies without an action in a row the
episode ends truncated, for each of them costs money. A reply without text, such as a call of tools
alone, has no action. Nothing is cut from the history: an episode that outgrows the model's context,
or that a filter of the server's refuses, ends truncated, and costs no other.
"""

import hashlib
import json
import logging
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, Protocol

from pydantic import JsonValue

from stepagent.chat.client import (
    ChatConfig,
    Filtered,
    Message,
    Reply,
    TooLong,
    Usage,
    without_system,
)
from stepagent.chat.prompts import Prompt, PromptFormat, seen_text
from stepagent.chat.server_errors import Option
from stepagent.tasks.base import NOTHING, EnvironmentLost, Task, TextEnv
from stepagent.tasks.tries import Lost, play_all, retried
from stepagent.types import Step, Trajectory

logger = logging.getLogger(__name__)

MAX_SILENT = 3
"""Replies without an action, one after the other, that end an episode."""

NO_ROOM = "its first state does not fit"
"""Why an episode was ended before its first action."""

CHOICE = "task_types"
"""The one fact of a task that says which items there are, and not how one of them is played."""


def protocol_of(task: Task) -> dict[str, JsonValue]:
    """What a task states of how one of its items is played."""
    facts: dict[str, JsonValue] = json.loads(json.dumps(task.facts()))  # as it is read again
    return {name: fact for name, fact in facts.items() if name != CHOICE}


class Chat(Protocol):
    """A model that replies to messages; any thread may ask it."""

    model: str
    config: ChatConfig
    refused: frozenset[Option]
    """What its server does not take; it is asked without."""

    def reply(self, messages: Sequence[Message]) -> Reply:
        """Raises `ChatError`; `TooLong` if the messages do not fit, `Filtered` if they may not."""
        ...


@dataclass(frozen=True)
class PromptedPolicy:
    """A chat model that acts in one task, and how it is prompted."""

    client: Chat
    task: Task
    format: PromptFormat
    guide: str = ""
    """What the model has to know about the environment, such as the actions there are."""
    demonstrations: tuple[Trajectory, ...] = ()
    """Expert trajectories, from which the examples are chosen."""
    few_shot: int = 0
    """Examples in a prompt."""

    def prompt(self, item: str) -> Prompt:
        """The item's own prompt; examples of its group come first, itself is never among them."""
        group = self.task.group(item)
        others = [(own, t) for own, t in self._grouped if t.id != item]
        nearest = sorted(others, key=lambda other: other[0] != group)[: self.few_shot]
        return Prompt(self.format, self.guide, tuple(t for _, t in nearest))

    @cached_property
    def _grouped(self) -> list[tuple[str, Trajectory]]:
        return [(self.task.group(t.id), t) for t in self.demonstrations]

    @cached_property
    def _protocol(self) -> dict[str, JsonValue]:
        return protocol_of(self.task)

    def settings(self, item: str) -> dict[str, JsonValue]:
        """All that decides how the item is played; part of its episode's metadata."""
        prompt = self.prompt(item)
        opening = prompt.opening("", "")
        if not self.client.config.system_role:
            opening = without_system(opening)
        told = json.dumps([asdict(message) for message in opening])
        return {
            "model": self.client.model,
            "prompt_format": self.format,
            "examples": [example.id for example in prompt.examples],
            "prompt_sha256": hashlib.sha256(told.encode()).hexdigest(),
            "temperature": self.client.config.temperature,
            "max_tokens": self.client.config.max_tokens,
            "protocol": self._protocol,
        }


class _Stopped(Exception):
    """Nobody waits for the episode any more."""


def play(
    policy: PromptedPolicy, items: Sequence[str], *, num_parallel: int
) -> Generator[Trajectory | Lost, None, None]:
    """What comes of the items, as they are finished; a lost environment costs its own episode only.

    After an error no episode is begun, those that run are played to their end, since they are
    paid for, and then the error is raised. Closing the iterator stops without waiting.
    """
    yield from play_all(partial(_play, policy), items, num_parallel)


def _play(
    policy: PromptedPolicy, items: Sequence[str], num_parallel: int
) -> Generator[Trajectory | Lost, None, None]:
    waiting: SimpleQueue[str] = SimpleQueue()
    for item in items:
        waiting.put(item)
    results: SimpleQueue[Trajectory | Lost | Exception | None] = SimpleQueue()
    stop = Event()

    def work() -> None:
        env = policy.task.make_env()
        try:
            with suppress(Empty, _Stopped):
                while True:
                    results.put(_episode(policy, env, waiting.get_nowait(), stop))
        except Exception as error:
            with suppress(Empty):
                while True:
                    waiting.get_nowait()
            results.put(error)
        finally:
            env.close()
            results.put(None)

    num_working = min(num_parallel, len(items))
    for _ in range(num_working):
        # Daemons, since a thread that waits for a server would keep Ctrl-C waiting too.
        Thread(target=work, daemon=True).start()
    failure: Exception | None = None
    try:
        while num_working:
            match results.get():
                case None:
                    num_working -= 1
                case Exception() as error:
                    failure = failure or error
                case outcome:
                    yield outcome
    finally:
        stop.set()
    if failure:
        raise failure


@dataclass
class _Running:
    """An episode in progress."""

    item: str
    instruction: str = ""
    observation: str = ""
    steps: list[Step] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    terminated: bool = False
    truncated: bool = False
    stopped: str = ""
    """Why the episode was ended here and not by the environment."""
    silent: int = 0
    """Replies without an action since the last one that had one."""
    # What it has cost and how it was answered, attempts that were lost included.
    usage: Usage = Usage()
    empty_replies: int = 0
    cut_off_replies: int = 0


def _episode(policy: PromptedPolicy, env: TextEnv, item: str, stop: Event) -> Trajectory | Lost:
    """One episode; a lost environment has it repeated."""
    episode = _Running(item)  # the same in every try: what was lost has been paid, too
    prompt = policy.prompt(item)

    def play() -> Trajectory:
        try:
            _begin(episode, prompt, env)
            while not (episode.terminated or episode.truncated):
                if stop.is_set():
                    raise _Stopped
                _step(episode, prompt, policy.client, env)
        except EnvironmentLost:
            if stop.is_set():
                raise _Stopped from None
            raise
        return _finish(episode, policy)

    return retried(item, play)


def _begin(episode: _Running, prompt: Prompt, env: TextEnv) -> None:
    episode.observation, episode.info = env.reset(options={"item": episode.item})
    episode.instruction = episode.info["instruction"]
    episode.messages = prompt.opening(episode.instruction, episode.observation)
    episode.steps, episode.silent = [], 0
    episode.terminated, episode.truncated, episode.stopped = False, False, ""


def _step(episode: _Running, prompt: Prompt, client: Chat, env: TextEnv) -> None:
    try:
        reply = client.reply(episode.messages)
    except TooLong as error:
        reason = "it outgrew the model's context" if episode.steps else f"{NO_ROOM}: {error}"
        return _stop(episode, env, reason)
    except Filtered as error:
        return _stop(episode, env, str(error))
    thought, action = prompt.read(reply.text)
    if reply.thought != thought:
        thought = "\n".join(filter(None, [reply.thought, thought]))
    episode.usage += reply.usage
    episode.cut_off_replies += reply.is_cut_off
    episode.empty_replies += not action
    episode.silent = 0 if action else episode.silent + 1
    _act(episode, thought, action, env)
    said = [prompt.answer(episode.steps[-1]), Message("user", seen_text(episode.observation))]
    episode.messages += said
    if episode.silent == MAX_SILENT and not (episode.terminated or episode.truncated):
        episode.truncated = True
        episode.stopped = f"{MAX_SILENT} replies in a row had no action"


def _stop(episode: _Running, env: TextEnv, reason: str) -> None:
    if not episode.steps:
        # Only a step brings a score: the agent is silent once.
        _act(episode, "", "", env)
    episode.truncated, episode.stopped = True, reason


def _act(episode: _Running, thought: str, action: str, env: TextEnv) -> None:
    after, reward, episode.terminated, episode.truncated, episode.info = env.step(action)
    step = Step(
        observation=episode.observation,
        action=action or NOTHING,
        thought=thought,
        reward=float(reward),
    )
    episode.steps.append(step)
    episode.observation = after


def _finish(episode: _Running, policy: PromptedPolicy) -> Trajectory:
    """The record of the episode; replies that were no good are one line on standard error."""
    faults = {"without an action": episode.empty_replies, "cut off": episode.cut_off_replies}
    told = [f"{count} replies {fault}" for fault, count in faults.items() if count]
    told += [f"ended because {episode.stopped}"] if episode.stopped else []
    if told:
        logger.warning("%s: %s", episode.item, ", ".join(told))
    return Trajectory(
        id=episode.item,
        task=policy.task.name,
        instruction=episode.instruction,
        steps=tuple(episode.steps),
        final_observation=episode.observation,
        score=float(episode.info["score"]),
        success=bool(episode.info["success"]),
        truncated=episode.truncated,
        metadata={
            **policy.settings(episode.item),
            "prompt_tokens": episode.usage.prompt_tokens,
            "completion_tokens": episode.usage.completion_tokens,
            "empty_replies": episode.empty_replies,
            "cut_off_replies": episode.cut_off_replies,
            "stopped": episode.stopped,
            "refused_options": [*sorted(policy.client.refused)],
            "details": episode.info.get("details", {}),
        },
    )
