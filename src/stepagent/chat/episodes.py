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
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Protocol

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
from stepagent.tasks.base import EnvironmentLost, Task, TextEnv
from stepagent.tasks.playing import Episode
from stepagent.tasks.tries import Lost, play_all, retried
from stepagent.types import Trajectory

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
class _Replies:
    """What the replies for an item cost and what was wrong with them, those of lost tries too."""

    usage: Usage = Usage()
    empty: int = 0
    cut_off: int = 0


def _episode(policy: PromptedPolicy, env: TextEnv, item: str, stop: Event) -> Trajectory | Lost:
    """One episode; a lost environment has it repeated."""
    prompt, replies = policy.prompt(item), _Replies()

    def play() -> Trajectory:
        try:
            chat = _Conversation(policy.client, prompt, Episode(env, item), replies)
            while not chat.episode.is_over:
                if stop.is_set():
                    raise _Stopped
                chat.turn()
        except EnvironmentLost:
            if stop.is_set():
                raise _Stopped from None
            raise
        return _record(policy, chat)

    return retried(item, play)


class _Conversation:
    """An episode in progress, as the messages between the environment and the model."""

    def __init__(self, client: Chat, prompt: Prompt, episode: Episode, replies: _Replies) -> None:
        self.client, self.prompt, self.episode, self.replies = client, prompt, episode, replies
        self.messages = prompt.opening(episode.instruction, episode.observation)
        self.stopped = ""
        """Why the episode was ended here and not by the environment."""
        self.silent = 0
        """Replies without an action since the last one that had one."""

    def turn(self) -> None:
        """One reply and the action in it; the episode ends if the server gives no reply."""
        try:
            reply = self.client.reply(self.messages)
        except TooLong as error:
            is_begun = bool(self.episode.steps)
            return self._stop(
                "it outgrew the model's context" if is_begun else f"{NO_ROOM}: {error}"
            )
        except Filtered as error:
            return self._stop(str(error))
        thought, action = self.prompt.read(reply.text)
        if reply.thought != thought:
            thought = "\n".join(filter(None, [reply.thought, thought]))
        self.replies.usage += reply.usage
        self.replies.cut_off += reply.is_cut_off
        self.replies.empty += not action
        self.silent = 0 if action else self.silent + 1
        self.episode.act(action, thought)
        seen = Message("user", seen_text(self.episode.observation))
        self.messages += [self.prompt.answer(self.episode.steps[-1]), seen]
        if self.silent == MAX_SILENT and not self.episode.is_over:
            self._stop(f"{MAX_SILENT} replies in a row had no action")

    def _stop(self, reason: str) -> None:
        if not self.episode.steps:
            # Only a step brings a score: the agent is silent once.
            self.episode.act("")
        self.episode.truncate()
        self.stopped = reason


def _record(policy: PromptedPolicy, chat: _Conversation) -> Trajectory:
    """The record of the episode; replies that were no good are one line on standard error."""
    item, replies = chat.episode.item, chat.replies
    faults = {"without an action": replies.empty, "cut off": replies.cut_off}
    told = [f"{count} replies {fault}" for fault, count in faults.items() if count]
    told += [f"ended because {chat.stopped}"] if chat.stopped else []
    if told:
        logger.warning("%s: %s", item, ", ".join(told))
    metadata = {
        **policy.settings(item),
        "prompt_tokens": replies.usage.prompt_tokens,
        "completion_tokens": replies.usage.completion_tokens,
        "empty_replies": replies.empty,
        "cut_off_replies": replies.cut_off,
        "stopped": chat.stopped,
        "refused_options": [*sorted(policy.client.refused)],
        "details": chat.episode.info.get("details", {}),
    }
    return chat.episode.trajectory(policy.task.name, metadata)
