"""Prompted policies: chat models act in the environments of a task, as baselines or as experts.

They are treated like local policies: every action is played and costs a step, even if it is empty
or cut off. Since replies cost money, an episode is truncated after `MAX_SILENT` replies in a row
without an action; a reply without text, such as a bare tool call, has none. The history is never
shortened: an episode that outgrows the model's context, or that the server's content filter
refuses, is truncated, without harm to the other episodes.
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
"""An episode is truncated after this many replies in a row without an action."""

NO_ROOM = "its first state does not fit"
"""Why an episode was truncated before its first action."""

CHOICE = "task_types"
"""The one fact of a task that states which items there are, not how an item is played."""


def protocol_of(task: Task) -> dict[str, JsonValue]:
    """The facts of a task that determine how one of its items is played."""
    facts: dict[str, JsonValue] = json.loads(json.dumps(task.facts()))  # as it will be read back
    return {name: fact for name, fact in facts.items() if name != CHOICE}


class Chat(Protocol):
    """A model that replies to messages; may be used by any thread."""

    model: str
    config: ChatConfig
    refused: frozenset[Option]
    """Options that its server does not accept; requests leave them out."""

    def reply(self, messages: Sequence[Message]) -> Reply:
        """The next message of the model.

        Raises `ChatError`: `TooLong` if the messages do not fit into the context, `Filtered` if the
        server refuses their content.
        """
        ...


@dataclass(frozen=True)
class PromptedPolicy:
    """A chat model that acts in one task, and how it is prompted."""

    client: Chat
    task: Task
    format: PromptFormat
    guide: str = ""
    """What the model is told about the environment, such as the available actions."""
    demonstrations: tuple[Trajectory, ...] = ()
    """Expert trajectories from which the examples are chosen."""
    few_shot: int = 0
    """Number of examples in a prompt."""

    def prompt(self, item: str) -> Prompt:
        """The prompt for an item: examples of its group come first, the item itself never."""
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
        """Everything that determines how the item is played; stored in its episode's metadata."""
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
    """The result of the episode is no longer wanted."""


def play(
    policy: PromptedPolicy, items: Sequence[str], *, num_parallel: int
) -> Generator[Trajectory | Lost, None, None]:
    """Yields the outcome of every item, in the order in which they finish.

    After an error no more episodes are begun; those that are running are finished, because they are
    paid for, and then the error is raised. Closing the generator stops without waiting.
    """
    yield from play_all(partial(_play, policy), items, num_parallel)


def _play(
    policy: PromptedPolicy, items: Sequence[str], num_parallel: int
) -> Generator[Trajectory | Lost, None, None]:
    waiting: SimpleQueue[str] = SimpleQueue()
    for item in items:
        waiting.put(item)
    results: SimpleQueue[Trajectory | Lost | Exception | None] = SimpleQueue()
    taken: SimpleQueue[None] = SimpleQueue()
    stop = Event()

    def work() -> None:
        env = policy.task.make_env()
        try:
            with suppress(Empty, _Stopped):
                while not stop.is_set():
                    results.put(_episode(policy, env, waiting.get_nowait(), stop))
                    taken.get()  # no more is paid for until an outcome is taken, and so saved
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
        # Daemons, because a thread that waits for a server would delay Ctrl-C.
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
                    taken.put(None)
    finally:
        stop.set()
        for _ in range(num_working):
            taken.put(None)
    if failure:
        raise failure


@dataclass
class _Replies:
    """Cost and faults of the replies for an item, including attempts that were lost."""

    usage: Usage = Usage()
    empty: int = 0
    cut_off: int = 0


def _episode(policy: PromptedPolicy, env: TextEnv, item: str, stop: Event) -> Trajectory | Lost:
    """Plays one episode; begins it again if the environment is lost."""
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
    """An episode as a dialogue between the environment and the model."""

    def __init__(self, client: Chat, prompt: Prompt, episode: Episode, replies: _Replies) -> None:
        self.client, self.prompt, self.episode, self.replies = client, prompt, episode, replies
        self.messages = prompt.opening(episode.instruction, episode.observation)
        self.stopped = ""
        """Why the episode was truncated here; empty if the environment ended it."""
        self.silent = 0
        """Replies without an action since the last action."""

    def turn(self) -> None:
        """Asks for a reply and plays its action; truncates the episode if there is no reply."""
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
            # The score comes with a step, so an empty action is played.
            self.episode.act("")
        self.episode.truncate()
        self.stopped = reason


def _record(policy: PromptedPolicy, chat: _Conversation) -> Trajectory:
    """The finished trajectory; logs one line if replies were empty or cut off."""
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
