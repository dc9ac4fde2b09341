"""Reads the reply from a chat completions API's answer, in the variants that servers send.

Reasoning that a server sends separately from the text becomes the thought. A reply that only calls
tools, although none were offered, counts as an empty text; an error in place of a reply does not.
"""

import json
from dataclasses import dataclass
from typing import Any

from stepagent.chat.server_errors import Fault, read_fault

ENDED = {"stop", "tool_calls", "function_call", "eos", "eos_token", "stop_sequence", "end_turn",
         "complete"}  # fmt: skip
"""Finish reasons of a reply that the model ended."""

CUT_OFF = {"length", "max_tokens", "model_length"}
"""Finish reasons of a reply that reached its limit; the text is empty if only reasoning fitted."""

BROKEN = {"error", "abort", "aborted", "cancelled", "timeout", "network_error", "failed",
          "insufficient_system_resource"}  # fmt: skip
"""Finish reasons of a reply during which the server failed."""

MAX_COUNT = 10**12
"""Largest token count that is believed."""

SAID = ("text", "output_text")
THOUGHT = ("thinking", "reasoning", "reasoning.text", "reasoning.summary", "refusal")
CALLED = ("tool_use", "tool_call", "function_call", "redacted_thinking")
"""Types of the parts of a message's content."""


class Unreadable(ValueError):
    """Not an answer of a chat completions API."""

    def __init__(self, reason: str, *, is_passing: bool = False) -> None:
        """`is_passing`: whether a retry may succeed."""
        super().__init__(reason)
        self.is_passing = is_passing


@dataclass(frozen=True)
class Usage:
    """Prompt and completion tokens as counted by the server; None if it gave no count."""

    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            _sum(self.prompt_tokens, other.prompt_tokens),
            _sum(self.completion_tokens, other.completion_tokens),
        )

    def cost(self, price_in: float | None, price_out: float | None) -> float | None:
        """The cost at prices per million tokens; None if a price or count is unknown."""
        if self.prompt_tokens is None or self.completion_tokens is None:
            return None
        if price_in is None or price_out is None:
            return None
        return (self.prompt_tokens * price_in + self.completion_tokens * price_out) / 1e6


@dataclass(frozen=True)
class Reply:
    """A reply of the model."""

    text: str
    """Empty if the model wrote nothing or only called tools."""
    is_cut_off: bool
    """Whether a limit, a filter or an unknown cause ended it, rather than the model."""
    usage: Usage
    thought: str = ""
    """Reasoning that the server sent separately from the text."""
    only_calls: bool = False
    """Whether it has tool calls but no text."""


def _sum(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def parse(body: bytes) -> Any:
    """Parses a body as JSON; raises `Unreadable`."""
    try:
        return json.loads(body)  # detects UTF-16 and UTF-32
    except RecursionError:
        raise Unreadable("its JSON is nested too deeply") from None
    except UnicodeDecodeError:
        raise Unreadable("not UTF-8 text") from None
    except ValueError:
        start = _start(body)
        if start.startswith(("data:", "event:", ":")):
            raise Unreadable("an event stream, which was not requested") from None
        raise Unreadable(f"not JSON: {start}") from None


def read_reply(body: bytes) -> Reply | Fault:
    """Reads an answer with status 200: its reply, or its error; raises `Unreadable`."""
    content = parse(body)
    if isinstance(content, list) and content:
        content = content[0]  # Gemini wraps its errors in a list
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
        raise Unreadable(f"its token counts are not numbers: {counts}")
    end = str(reason or "stop").lower()
    is_silent = not (text.strip() or has_calls)
    if choice.get("error") or end in BROKEN or (is_silent and end not in ENDED | CUT_OFF):
        return read_fault(200, [choice.get("error"), f"a reply that ended with {end}"], True)
    return Reply(text, end not in ENDED, Usage(*counts), thought, has_calls and not text.strip())


def read_error(status: int, body: bytes) -> Fault:
    """Reads an answer with another status than 200 as an error, whatever it contains."""
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
    """The text of a message's content, which may be a list of parts; skips parts without text."""
    match content:
        case None:
            return ""
        case str():
            # JSON may contain lone surrogates, which cannot be written to a file.
            return content.encode("utf-8", "replace").decode()
        case list():
            return "".join(_text(part["text"]) for part in content if _kind(part) in SAID)
    raise Unreadable(f"the message's content is not text: {content}")


def _kind(part: dict[str, Any]) -> str:
    kind = str(part.get("type", "text"))
    if kind not in (*SAID, *THOUGHT, *CALLED):
        raise Unreadable(f"the message's content has a part that is not text: {kind}")
    return kind


def _thought(message: dict[str, Any]) -> str:
    """Reasoning in fields of its own or in parts of the content; a refusal counts as a thought."""
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
