"""Chat models behind an OpenAI-compatible server: one reply at a time, its tokens counted.

Rate limits, server errors, lost connections and replies that break off are tried again with
growing, jittered pauses. What then still fails is one line for the user. What a server does not
know, such as a system role, is left out from then on. The key comes from the environment variable
`OPENAI_API_KEY`; it is sent to the server and goes nowhere else.
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

from stepagent.chat.faults import Fault, Option
from stepagent.chat.http import Unreachable, Unusable, post
from stepagent.chat.replies import Reply as Reply
from stepagent.chat.replies import Unreadable, read_error, read_reply
from stepagent.chat.replies import Usage as Usage

logger = logging.getLogger(__name__)

DEFAULT_URL = "https://api.openai.com/v1"

KEY_VARIABLE = "OPENAI_API_KEY"

MIN_SECRET = 12
"""Characters of a key that are hidden wherever they are found; fewer may be found by chance."""

MAX_QUOTED, MAX_SHOWN = 4000, 300
"""Characters of a server's text that are searched for the key, and that are shown."""

LimitName = Literal["max_completion_tokens", "max_tokens"]

OTHER_NAME: dict[LimitName, LimitName] = {
    "max_completion_tokens": "max_tokens",
    "max_tokens": "max_completion_tokens",
}

INSTEAD: dict[Option, str] = {
    "system": "knows no system role; the rules stand in front of the first user message",
    "temperature": "takes no temperature; its server chooses one",
    "max_completion_tokens": "does not know max_completion_tokens; asked with max_tokens",
    "max_tokens": "does not know max_tokens; asked with max_completion_tokens",
}
"""What is done about an option that a server refuses."""

Failure = Fault | TimeoutError | Unreachable | Unusable | Unreadable
"""What can come in the place of a reply."""


class ChatError(RuntimeError):
    """The server gives no usable answer; the message is one line."""


class TooLong(ChatError):
    """The messages do not fit into the model's context."""


class Filtered(ChatError):
    """A filter of the server's refuses these messages, or every reply to them."""


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """How a chat model is asked."""

    base_url: str | None = None
    """Address of the API, usually ending in /v1; by default OPENAI_BASE_URL, then OpenAI itself."""
    temperature: float | None = 0.0
    """Softmax temperature; None leaves it to the server, as reasoning models want it."""
    max_tokens: int = 512
    """Longest reply, in tokens."""
    max_tokens_field: LimitName = "max_completion_tokens"
    """How the server calls that limit. One that refuses a name is asked with the other; one that
    ignores it writes without a limit."""
    system_role: bool = True
    """Whether the rules are a system message; else they stand in front of the first user message,
    as they do for a server that says it knows no system role."""
    timeout_seconds: float = 120.0
    """How long one try may take, from the look-up of the server to its last byte."""
    max_retries: int = 5
    """Tries after the first, at rate limits, server errors, lost connections and broken replies."""


@dataclass(frozen=True)
class Message:
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class ChatClient:
    """A model on a server; any thread may ask it."""

    def __init__(self, model: str, config: ChatConfig) -> None:
        """Raises `ChatError` if the address is none or the key is missing; asks nothing yet."""
        self.model = model
        self.config = config
        url = config.base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL
        self.url = _shown_url(url)
        base = httpx2.URL(url)
        self._endpoint = base.copy_with(path=f"{base.path.rstrip('/')}/chat/completions")
        self.refused: frozenset[Option] = (
            frozenset() if config.system_role else frozenset({"system"})
        )
        """What the server does not take; it is asked without."""
        self._has_called = False
        self._lock = Lock()
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        if not self._key and url == DEFAULT_URL:
            raise ChatError(f"{self.url}: wants a key; set the environment variable {KEY_VARIABLE}")
        if not (self._key.isascii() and self._key.isprintable()):
            raise ChatError(f"{KEY_VARIABLE}: not a key; it has characters that no key has")
        self._headers = {"Content-Type": "application/json"}
        # Local servers want none, but some refuse a request without one.
        self._headers["Authorization"] = f"Bearer {self._key or 'none'}"

    def reply(self, messages: Sequence[Message]) -> Reply:
        """The model's reply; raises `ChatError`, `TooLong` or `Filtered`."""
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
            time.sleep(pause if pause is not None else _usual_pause(tries))
            tries += 1

    def _ask(
        self, messages: Sequence[Message], refused: frozenset[Option]
    ) -> tuple[Reply | Failure, float | None]:
        """One try: the reply or what came in its place, and for how long the server wants peace."""
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
        """What the server calls the longest reply."""
        name = self.config.max_tokens_field
        return OTHER_NAME[name] if name in refused else name

    def _leaves_out(
        self, fault: Fault, messages: Sequence[Message], refused: frozenset[Option]
    ) -> bool:
        """Whether the server refuses a part of the request that it is now asked without."""
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
        """The reply as it may be written to files."""
        if reply.only_calls and not self._has_called:
            self._has_called = True
            logger.warning("%s: calls tools, of which it has none; that is no action", self.model)
        if len(self._key) < MIN_SECRET:
            return reply
        text, thought = (t.replace(self._key, "***") for t in (reply.text, reply.thought))
        return replace(reply, text=text, thought=thought)

    def _explained(self, failure: Failure, tries: int) -> ChatError:
        """The failure as one line that says what to do."""
        match failure:
            case TimeoutError():
                limit = self.config.timeout_seconds
                return ChatError(f"{self.url}: no answer within {limit:g} s, tried {tries} times")
            case Unreachable():
                return ChatError(
                    f"{self.url}: cannot be reached ({self._quoted(str(failure))}), tried {tries} "
                    "times; is the server running?"
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
            return Filtered(f"{self.url}: a filter refuses the messages; it says: {said}")
        if failure.status in (401, 403):
            return ChatError(
                f"{self.url}: refuses the key, check the environment variable {KEY_VARIABLE}; "
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
        """The start of a text from outside, escaped and without the key, which it may repeat."""
        text = text[:MAX_QUOTED]
        if key := self._key:
            forms = {key, quote(key, safe=""), quote_plus(key), json.dumps(key)[1:-1]}
            for form in sorted(forms, key=len, reverse=True):
                text = re.sub(re.escape(form), "***", text, flags=re.IGNORECASE)
            for length in range(len(key) - 1, MIN_SECRET - 1, -1):  # it may be cut off
                text = text.replace(key[:length], "***").replace(key[-length:], "***")
        return repr(text[:MAX_SHOWN])


def without_system(messages: Sequence[Message]) -> list[Message]:
    """The messages with what the system says in front of the first that the user says."""
    said = [message.content for message in messages if message.role == "system"]
    first, *later = [message for message in messages if message.role != "system"]
    return [Message("user", "\n\n".join([*said, first.content])), *later]


def _is_passing(failure: Failure) -> bool:
    if isinstance(failure, Fault | Unreadable):
        return failure.is_passing
    return isinstance(failure, TimeoutError | Unreachable)


def _usual_pause(tries: int) -> float:
    """Doubled each time, with jitter, so that parallel episodes do not all ask again at once."""
    return min(0.5 * 2.0 ** (tries - 1), 8.0) * random.uniform(0.75, 1.0)


def _shown_url(url: str) -> str:
    """The address without the parts that may hold secrets; raises `ChatError` if it is none."""
    try:
        parts = urlsplit(url)
        port = "" if parts.port is None else f":{parts.port}"
        httpx2.URL(url)
    except (ValueError, httpx2.InvalidURL):
        parts, port = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ChatError(
            f"{url[:100]!r}: not the address of a server; expected one like {DEFAULT_URL}"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{port}{parts.path}"
