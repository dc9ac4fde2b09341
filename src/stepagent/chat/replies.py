"""The reply in an answer of a chat completions API, whatever the server takes that to be.

What counts is the text. Reasoning that a server sends beside it is the thought. A reply that only
calls tools, of which it was offered none, has no text: that is the agent's silence. An error that
comes in the place of a reply is not.
"""

import json
from dataclasses import dataclass
from typing import Any

from stepagent.chat.faults import Fault, read_fault

ENDED = {"stop", "tool_calls", "function_call", "eos", "eos_token", "stop_sequence", "end_turn",
         "complete"}  # fmt: skip
"""Why a reply ended, if the model ended it."""

CUT_OFF = {"length", "max_tokens", "model_length"}
"""Why a reply ended, if it reached its limit; after reasoning alone it has no text."""

BROKEN = {"error", "abort", "aborted", "cancelled", "timeout", "network_error", "failed",
          "insufficient_system_resource"}  # fmt: skip
"""Why a reply ended, if the server failed."""

MAX_COUNT = 10**12
"""More tokens than anyone counts."""


SAID = ("text", "output_text")
THOUGHT = ("thinking", "reasoning", "reasoning.text", "reasoning.summary", "refusal")
CALLED = ("tool_use", "tool_call", "function_call", "redacted_thinking")
"""Parts of a content by their type."""


class Unreadable(ValueError):
    """Not an answer of a chat completions API."""

    def __init__(self, reason: str, *, is_passing: bool = False) -> None:
        """`is_passing`: another try may bring one."""
        super().__init__(reason)
        self.is_passing = is_passing


@dataclass(frozen=True)
class Usage:
    """Tokens read and written, as the server counts them; None if it has not said so."""

    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            _sum(self.prompt_tokens, other.prompt_tokens),
            _sum(self.completion_tokens, other.completion_tokens),
        )

    def cost(self, price_in: float | None, price_out: float | None) -> float | None:
        """What it cost at prices for a million tokens; None if a price or a count is not known."""
        if self.prompt_tokens is None or self.completion_tokens is None:
            return None
        if price_in is None or price_out is None:
            return None
        return (self.prompt_tokens * price_in + self.completion_tokens * price_out) / 1e6


@dataclass(frozen=True)
class Reply:
    """What the model said."""

    text: str
    """Empty if it said nothing, or only called tools."""
    is_cut_off: bool
    """Whether a limit or a filter ended it, or something unknown, and not the model."""
    usage: Usage
    thought: str = ""
    """Reasoning that the server sends apart from the text."""
    only_calls: bool = False
    """Whether it calls tools and has no text."""


def _sum(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def parse(body: bytes) -> Any:
    """The JSON in a body; raises `Unreadable`."""
    try:
        return json.loads(body)  # UTF-16 and UTF-32 are found out
    except RecursionError:
        raise Unreadable("its JSON is nested too deeply") from None
    except UnicodeDecodeError:
        raise Unreadable("not text in UTF-8") from None
    except ValueError:
        start = _start(body)
        if start.startswith(("data:", "event:", ":")):
            raise Unreadable("a stream of events, though none was asked for") from None
        raise Unreadable(f"no JSON: {start}") from None


def read_reply(body: bytes) -> Reply | Fault:
    """The reply in an answer with status 200, or the error there; raises `Unreadable`."""
    content = parse(body)
    if isinstance(content, list) and content:
        content = content[0]  # Gemini puts its errors into a list
    if not isinstance(content, dict):
        raise Unreadable(f"no message in it: {_start(body)}")
    if content.get("error") or not content.get("choices"):
        fault = read_fault(200, content)
        if fault.said:
            return fault
        raise Unreadable(f"no message in it: {_start(body)}", is_passing="choices" in content)
    try:
        choice = content["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        text, thought = _text(message.get("content")), _thought(message)
        has_calls = bool(message.get("tool_calls") or message.get("function_call"))
        usage = content.get("usage") or {}
        counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
    except (AttributeError, TypeError, KeyError, RecursionError):
        raise Unreadable(f"no message in it: {_start(body)}") from None
    if not all(_is_count(count) for count in counts):
        raise Unreadable(f"its token counts are no numbers: {counts}")
    end = str(reason or "stop").lower()
    is_silent = not (text.strip() or has_calls)
    if choice.get("error") or end in BROKEN or (is_silent and end not in ENDED | CUT_OFF):
        return read_fault(200, [choice.get("error"), f"a reply that ended with {end}"], True)
    return Reply(text, end not in ENDED, Usage(*counts), thought, has_calls and not text.strip())


def read_error(status: int, body: bytes) -> Fault:
    """The error in an answer with another status than 200; anything can be read as one."""
    try:
        fault = read_fault(status, parse(body))
    except Unreadable:
        fault = read_fault(status, None)
    return fault if fault.said else read_fault(status, _start(body))


def _start(body: bytes) -> str:
    return body[:600].decode("utf-8", "replace").strip()


def _is_count(count: object) -> bool:
    if isinstance(count, int) and not isinstance(count, bool):
        return 0 <= count <= MAX_COUNT
    return count is None


def _text(content: object) -> str:
    """A content, which may come in parts; those that are no text are not said."""
    match content:
        case None:
            return ""
        case str():
            # Lone surrogates, which JSON may hold, cannot be written to a file.
            return content.encode("utf-8", "replace").decode()
        case list():
            return "".join(_text(part["text"]) for part in content if _kind(part) in SAID)
    raise Unreadable(f"the message's content is no text: {content}")


def _kind(part: dict[str, Any]) -> str:
    kind = str(part.get("type", "text"))
    if kind not in (*SAID, *THOUGHT, *CALLED):
        raise Unreadable(f"the message's content has a part that is no text: {kind}")
    return kind


def _thought(message: dict[str, Any]) -> str:
    """Reasoning beside the text, or in parts of it; a refusal is a thought too."""
    for name in ("reasoning_content", "reasoning", "thinking", "reasoning_details", "content"):
        match message.get(name):
            case str() as thought if thought.strip() and name != "content":
                return _text(thought).strip()
            case list() as parts:
                if thought := _thoughts(parts):
                    return thought
    refusal = message.get("refusal")
    return _text(refusal).strip() if isinstance(refusal, str) else ""


def _thoughts(parts: list[Any]) -> str:
    found = []
    for part in parts:
        if not isinstance(part, dict) or part.get("type") not in THOUGHT:
            continue
        for name in ("thinking", "text", "summary", "refusal"):
            value = part.get(name)
            if isinstance(value, str | list):
                found.append(_text(value).strip())
                break
    return "\n".join(filter(None, found))
