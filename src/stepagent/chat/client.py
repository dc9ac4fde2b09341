"""Client of chat models on an OpenAI-compatible server: one reply at a time, its tokens counted.

Rate limits, server errors, lost connections and broken replies are retried with exponential,
jittered backoff; an error that remains is one line for the user. Options that a server rejects,
such as a system role, are left out from then on. The key is read from the environment variable
`OPENAI_API_KEY` and sent to the server only.
"""

import json
import logging
import os
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Literal
from urllib.parse import quote, quote_plus, urlsplit

import httpx2

from stepagent.chat.http import Unreachable, Unusable, post
from stepagent.chat.replies import Reply as Reply
from stepagent.chat.replies import Unreadable, read_error, read_reply
from stepagent.chat.replies import Usage as Usage
from stepagent.chat.server_errors import Fault, Option

logger = logging.getLogger(__name__)

DEFAULT_URL = "https://api.openai.com/v1"

KEY_VARIABLE = "OPENAI_API_KEY"

MIN_SECRET = 12
"""Shortest part of a key that is hidden in texts; a shorter one may occur by chance."""

MAX_QUOTED, MAX_SHOWN = 4000, 300
"""Characters of a server's text that are searched for the key, and that a message shows."""

LimitName = Literal["max_completion_tokens", "max_tokens"]

OTHER_NAME: dict[LimitName, LimitName] = {
    "max_completion_tokens": "max_tokens",
    "max_tokens": "max_completion_tokens",
}

INSTEAD: dict[Option, str] = {
    "system": "rejects the system role; the rules now precede the first user message",
    "temperature": "rejects temperature; the server chooses one",
    "max_completion_tokens": "rejects max_completion_tokens; max_tokens is sent instead",
    "max_tokens": "rejects max_tokens; max_completion_tokens is sent instead",
}
"""How the client adapts to a server that rejects an option, for a warning."""

Failure = Fault | TimeoutError | Unreachable | Unusable | Unreadable
"""Everything that can come instead of a reply."""


class ChatError(RuntimeError):
    """The server gives no usable answer; the message is one line."""


class TooLong(ChatError):
    """The messages exceed the model's context."""


class Filtered(ChatError):
    """A content filter of the server rejects these messages, or every reply to them."""


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """Server and requests of a chat model."""

    base_url: str | None = None
    """Chat models: address of the API, often ending in /v1; default OPENAI_BASE_URL, or OpenAI."""
    temperature: float | None = 0.0
    """Chat models: softmax temperature; None (for reasoning models) leaves it to the server."""
    max_tokens: int = 512
    """Chat models: longest reply, in tokens."""
    max_tokens_field: LimitName = "max_completion_tokens"
    """Chat models: the server's name of that limit; if it rejects one name, the other is used."""
    system_role: bool = True
    """Chat models: rules are a system message; if not, they start the first user message."""
    timeout_seconds: float = 120.0
    """Chat models: seconds that one request may take in all."""
    max_retries: int = 5
    """Chat models: retries after rate limits, server errors, lost connections or broken replies."""


@dataclass(frozen=True)
class Message:
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class ChatClient:
    """A model on a server; safe to use from several threads."""

    def __init__(self, model: str, config: ChatConfig) -> None:
        """Raises `ChatError` if the address is invalid or the key missing; sends no request yet."""
        self.model = model
        self.config = config
        url = config.base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL
        self.url = shown_url(url, DEFAULT_URL)
        base = httpx2.URL(url)
        self._endpoint = base.copy_with(path=f"{base.path.rstrip('/')}/chat/completions")
        self.refused: frozenset[Option] = (
            frozenset() if config.system_role else frozenset({"system"})
        )
        """Options that the server rejects and that are left out of requests."""
        self._has_called = False
        self._lock = Lock()
        self._key = read_key()
        if not self._key and url == DEFAULT_URL:
            raise ChatError(
                f"{self.url}: requires a key; set the environment variable {KEY_VARIABLE}"
            )
        self._headers = headers_with(self._key)

    def reply(self, messages: Sequence[Message]) -> Reply:
        """The model's reply; raises `ChatError`, or its kinds `TooLong` and `Filtered`."""
        tries = 1
        while True:
            refused = self.refused
            outcome, pause = self._ask(messages, refused)
            if isinstance(outcome, Reply):
                return self._kept(outcome)
            if isinstance(outcome, Fault) and self._leaves_out(outcome, messages, refused):
                continue
            if not _is_passing(outcome) or tries > self.config.max_retries:
                raise self._explained(outcome, tries)
            time.sleep(pause if pause is not None else usual_pause(tries))
            tries += 1

    def _ask(
        self, messages: Sequence[Message], refused: frozenset[Option]
    ) -> tuple[Reply | Failure, float | None]:
        """One try: the reply or failure, and the seconds the server asks to wait, if it does."""
        if "system" in refused:
            messages = without_system(messages)
        request = {
            "model": self.model,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            self._limit(refused): self.config.max_tokens,
        }
        if self.config.temperature is not None and "temperature" not in refused:
            request["temperature"] = self.config.temperature
        body = json.dumps(request, ensure_ascii=False).encode("utf-8", "replace")
        try:
            answer = post(self._endpoint, self._headers, body, self.config.timeout_seconds)
            is_error = answer.status >= 300
            read = read_error(answer.status, answer.body) if is_error else read_reply(answer.body)
            return read, answer.pause
        except (TimeoutError, Unreachable, Unusable, Unreadable) as failure:
            return failure, None

    def _limit(self, refused: frozenset[Option]) -> LimitName:
        """The server's name for the limit of a reply's length."""
        name = self.config.max_tokens_field
        return OTHER_NAME[name] if name in refused else name

    def _leaves_out(
        self, fault: Fault, messages: Sequence[Message], refused: frozenset[Option]
    ) -> bool:
        """Whether the server rejected an option; if so, later requests leave it out."""
        sent: list[Option] = ["temperature"] if self.config.temperature is not None else []
        sent += [self._limit(refused)] if self.config.max_tokens_field not in refused else []
        sent += ["system"] if any(message.role == "system" for message in messages) else []
        for option in sent:
            if option not in refused and fault.refuses(option):
                with self._lock:
                    is_new = option not in self.refused
                    self.refused |= {option}
                if is_new:
                    logger.warning("%s: %s", self.model, INSTEAD[option])
                return True
        return False

    def _kept(self, reply: Reply) -> Reply:
        """The reply with the key hidden, so that it may be written to files."""
        if reply.only_calls and not self._has_called:
            self._has_called = True
            logger.warning(
                "%s: calls tools, but was offered none; such a reply is an empty action", self.model
            )
        if len(self._key) < MIN_SECRET:
            return reply
        text, thought = (t.replace(self._key, "***") for t in (reply.text, reply.thought))
        return replace(reply, text=text, thought=thought)

    def _explained(self, failure: Failure, tries: int) -> ChatError:
        """The failure as one line that says what went wrong and what to do."""
        match failure:
            case TimeoutError():
                limit = self.config.timeout_seconds
                return ChatError(f"{self.url}: no answer within {limit:g} s, tried {tries} times")
            case Unreachable():
                return ChatError(
                    f"{self.url}: cannot be reached ({self._quoted(str(failure))}), tried {tries} "
                    "times; check that the server is running"
                )
            case Unusable():
                return ChatError(f"{self.url}: no usable answer: {self._quoted(str(failure))}")
            case Unreadable():
                return ChatError(
                    f"{self.url}: not an answer of a chat completions API "
                    f"({self._quoted(str(failure))}); the address usually ends in /v1"
                )
        said = self._quoted(failure.said)
        error = f"error {failure.status}" if failure.status else "an error"
        if failure.is_too_long:
            return TooLong(f"{self.url}: too long for model {self.model!r}; it says: {said}")
        if failure.is_filtered:
            return Filtered(f"{self.url}: a content filter rejects the messages; it says: {said}")
        if failure.status in (401, 403):
            return ChatError(
                f"{self.url}: rejects the key; check the environment variable {KEY_VARIABLE}; "
                f"it says: {said}"
            )
        if failure.status == 404:
            return ChatError(
                f"{self.url}: no model {self.model!r} there, or no chat completions API (the "
                f"address usually ends in /v1); it says: {said}"
            )
        if failure.is_passing:
            return ChatError(f"{self.url}: {error}, tried {tries} times; it says: {said}")
        return ChatError(f"{self.url}: {error} for model {self.model!r}; it says: {said}")

    def _quoted(self, text: str) -> str:
        return quoted(text, self._key)


def read_key() -> str:
    """The key in the environment, empty if there is none; raises `ChatError` if it is no key."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ChatError(f"{KEY_VARIABLE}: not a key; expected printable ASCII characters only")
    return key


def headers_with(key: str) -> dict[str, str]:
    """The headers of a request with a key, which may be empty."""
    # Local servers need no key, but some reject a request without one.
    return {"Content-Type": "application/json", "Authorization": f"Bearer {key or 'none'}"}


def quoted(text: str, key: str) -> str:
    """The start of a server's text, escaped, with any copy of the key hidden."""
    text = text[:MAX_QUOTED]
    if key:
        forms = {key, quote(key, safe=""), quote_plus(key), json.dumps(key)[1:-1]}
        for form in sorted(forms, key=len, reverse=True):
            text = re.sub(re.escape(form), "***", text, flags=re.IGNORECASE)
        for length in range(len(key) - 1, MIN_SECRET - 1, -1):  # the copy may be cut off
            text = text.replace(key[:length], "***").replace(key[-length:], "***")
    return repr(text[:MAX_SHOWN])


def without_system(messages: Sequence[Message]) -> list[Message]:
    """The messages with the system messages moved to the start of the first user message."""
    said = [message.content for message in messages if message.role == "system"]
    first, *later = [message for message in messages if message.role != "system"]
    return [Message("user", "\n\n".join([*said, first.content])), *later]


def _is_passing(failure: Failure) -> bool:
    if isinstance(failure, Fault | Unreadable):
        return failure.is_passing
    return isinstance(failure, TimeoutError | Unreachable)


def usual_pause(tries: int) -> float:
    """Seconds to wait: exponential with jitter, so that parallel episodes do not retry at once."""
    return min(0.5 * 2.0 ** (tries - 1), 8.0) * random.uniform(0.75, 1.0)


def shown_url(url: str, example: str) -> str:
    """The address without parts that may hold secrets; raises `ChatError` if it is invalid."""
    try:
        parts = urlsplit(url)
        port = "" if parts.port is None else f":{parts.port}"
        httpx2.URL(url)
    except (ValueError, httpx2.InvalidURL):
        parts, port = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ChatError(f"{url[:100]!r}: not a server address; expected one like {example}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{port}{parts.path}"
