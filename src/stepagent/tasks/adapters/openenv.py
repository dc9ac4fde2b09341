"""Environments on an OpenEnv server (github.com/huggingface/OpenEnv), over its WebSocket.

Each environment of the task is one session of the server. Servers name the text fields of actions
and observations differently, and few report a score: see `OpenEnvConfig`, whose defaults fit a task
served by StepAgent (`stepagent.tasks.serving.server`).

Only `websockets` and `httpx2` are required: OpenEnv's own client has a hundred dependencies.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from pydantic import JsonValue

from stepagent.bounds import SECONDS, check_bounds
from stepagent.tasks.adapters.foreign import (
    Answer,
    Expert,
    ForeignEnv,
    ForeignTask,
    Items,
    checked_items,
)
from stepagent.tasks.adapters.openenv_session import Session
from stepagent.tasks.adapters.remote import JsonServer, ServerError
from stepagent.tasks.adapters.replies import Unusable, flag, names, number, quoted, text
from stepagent.tasks.adapters.scoring import Scoring
from stepagent.tasks.base import EnvironmentLost, Split

SPLIT_TYPES: Mapping[str, Split] = {"train": "train", "validation": "dev", "test": "test"}
"""Our split for each of OpenEnv's split types; others count as dev."""


@dataclass(frozen=True, kw_only=True)
class OpenEnvConfig:
    """The server, and the meaning of its fields."""

    url: str = "http://127.0.0.1:8000"
    """The server's address."""
    name: str = "openenv"
    """The task's name in results."""
    action: str = "text"
    """Field of an action that takes the agent's text."""
    observation: str = "text"
    """Field of an observation that the agent sees: text, or messages with `content`."""
    instruction: str = "instruction"
    """Field of the first observation with the instruction."""
    fixed_instruction: str | None = None
    """The instruction of all items, if no field has it."""
    scoring: Scoring = Scoring(of="info", best=100.0, success="success")
    """How rewards, or the metadata of observations, become the score."""
    step_limit: int | None = None
    """Step limit of an episode; None leaves it to the server."""
    timeout_seconds: float = 60.0
    """Timeout of one answer, in seconds."""

    def __post_init__(self) -> None:
        """Raises `OutOfBounds` for a timeout that is not positive."""
        check_bounds(self, {"timeout_seconds": SECONDS})


class OpenEnvTask(ForeignTask):
    """An OpenEnv server as a task; it has an expert only if one is given.

    `items` gives the arguments of `reset` for each item, e.g. `{"train": {"0": {"seed": 0}}}`.
    Without it the items are requested once, through OpenEnv's Task API. `headers`, such as an
    authorization, are sent with every request.
    """

    def __init__(
        self,
        config: OpenEnvConfig,
        *,
        items: Items | None = None,
        group: Callable[[str], str] | None = None,
        expert: Expert | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Raises `ServerError` for an invalid address; sends nothing yet."""
        super().__init__(
            config.name,
            items or {},
            scoring=config.scoring,
            step_limit=config.step_limit,
            group=group,
            expert=expert,
        )
        self.config = config
        self.headers = dict(headers or {})
        self.server = JsonServer(
            config.url, timeout_seconds=config.timeout_seconds, headers=self.headers
        )
        self._asked: Items | None = items
        self._lock = threading.Lock()
        self._groups: dict[str, str] = {}

    def build_env(self, step_limit: int | None) -> "OpenEnvTaskEnv":
        """A fresh environment."""
        return OpenEnvTaskEnv(self, step_limit)

    def known_items(self) -> Items:
        """The given items, or those that the server lists."""
        with self._lock:
            if self._asked is None:
                self._asked = checked_items(self._ask_for_items())
            return self._asked

    def group(self, item: str) -> str:
        """The group of the item, which the server may define."""
        kind = super().group(item)
        return self._groups.get(item, kind)

    def facts(self) -> dict[str, Any]:
        """The protocol for reports, with the server's address."""
        return super().facts() | {"engine": "a server of OpenEnv", "url": self.server.url}

    def _ask_for_items(self) -> dict[Split, dict[str, Any]]:
        """Items that the Task API lists, named by their `id`s, or else `SPLIT/INDEX`."""
        found: list[tuple[Split, str, int, JsonValue]] = []
        try:
            environment = quote(_only(self.server.get("/list_environments")), safe="")
            for listed in _list(self.server.get(f"/{environment}/splits")):
                split = _text_in(listed, "name")
                there = SPLIT_TYPES.get(_text_in(listed, "type"), "dev")
                reply = self.server.post(f"/{environment}/tasks", {"split": split})
                specs = _list(reply.get("tasks") if isinstance(reply, dict) else None)
                found += [(there, split, index, spec) for index, spec in enumerate(specs)]
        except (ServerError, Unusable) as error:
            raise ServerError(f"{error}; the server lists no items: give them as items=") from None
        ids = [spec.get("id") if isinstance(spec, dict) else None for *_, spec in found]
        named = all(isinstance(item, str) for item in ids) and len(set(map(str, ids))) == len(ids)
        items: dict[Split, dict[str, Any]] = {}
        for (there, split, index, spec), name in zip(found, ids, strict=True):
            item = str(name) if named else f"{split}/{index}"
            items.setdefault(there, {})[item] = {"split": split, "index": index}
            if isinstance(spec, dict) and isinstance(kind := spec.get("group"), str):
                self._groups[item] = kind
        return items


class OpenEnvTaskEnv(ForeignEnv):
    """A session on the server, opened at the first reset and again after a failure."""

    def __init__(self, task: OpenEnvTask, step_limit: int | None) -> None:
        """Connects at the first reset."""
        super().__init__(task, step_limit)
        self._config = task.config
        self._url = task.server.url
        self._session = Session(
            self._url, timeout_seconds=task.config.timeout_seconds, headers=task.headers
        )

    def start(self, item: str, arguments: Mapping[str, Any]) -> tuple[str, str]:
        """Resets the session to the item."""
        config = self._config
        data = self._session.ask("reset", dict(arguments))
        try:
            seen = _observation(data)
            first = self._text(seen, config.observation)
            if config.fixed_instruction is not None:
                return config.fixed_instruction, first
            return self._text(seen, config.instruction), first
        except Unusable as error:
            self.end()
            raise ServerError(f"{self._url}: {item}: {error}; see OpenEnvConfig") from None

    def play(self, action: str) -> Answer:
        """Plays the action in the session."""
        data = self._session.ask("step", {self._config.action: action})
        try:
            metadata = data.get("metadata")
            info = metadata if isinstance(metadata, dict) else {}
            reward = data.get("reward")
            is_over = flag(data.get("done"), "'done'")
            truncated = is_over and flag(info.get("truncated"), "'truncated'")
            return Answer(
                observation=self._text(_observation(data), self._config.observation),
                reward=0.0 if reward is None else number(reward, "the reward"),
                terminated=is_over and not truncated,
                truncated=truncated,
                info=info,
            )
        except Unusable as error:
            self.end()
            raise EnvironmentLost(f"{self._url}: {error}") from None

    def unscored(self, reason: str) -> ServerError:
        """Ends the session: the server's answers do not match the config."""
        self.end()
        return ServerError(f"{self._url}: {reason}")

    def end(self) -> None:
        """Ends the session."""
        self._session.close()

    def _text(self, seen: Mapping[str, JsonValue], name: str) -> str:
        """The text of a field of the observation; for chat messages, their contents."""
        if name not in seen:
            raise Unusable(f"no field {name!r} in the observation, which has: {names(seen)}")
        value = seen[name]
        if isinstance(value, list):
            return "\n".join(_text_in(message, "content") for message in value)
        return text(value, f"field {name!r} of the observation")


def _observation(data: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
    seen = data.get("observation")
    if not isinstance(seen, dict):
        raise Unusable(f"the observation is not an object: {quoted(seen)}")
    return seen


def _only(reply: JsonValue) -> str:
    """The name of the server's only environment."""
    listed = _list(reply)
    if len(listed) != 1 or not isinstance(listed[0], str):
        raise Unusable(f"expected the name of one environment, got {quoted(reply)}")
    return listed[0]


def _list(reply: JsonValue) -> list[JsonValue]:
    if not isinstance(reply, list):
        raise Unusable(f"expected a list, got {quoted(reply)}")
    return reply


def _text_in(value: JsonValue, name: str) -> str:
    found = value.get(name) if isinstance(value, dict) else None
    return text(found, f"{name!r} in {quoted(value)}")
