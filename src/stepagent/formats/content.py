"""Reads the content of a message, a string or list of parts: text, reasoning, calls, results."""

from dataclasses import dataclass, field

from pydantic import JsonValue

from stepagent.console.printable import shown
from stepagent.formats.records import FormatError, Notes, from_text
from stepagent.rendering.actions import Call


@dataclass
class Content:
    """The content of a message by kind."""

    text: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)
    call_ids: list[str] = field(default_factory=list)
    results: list[tuple[str | None, str]] = field(default_factory=list)
    """Results of tools: the id of the call (None if unknown), and the text."""


def text_of(content: JsonValue, place: str) -> str:
    """The text of a message's content, a string or a list of text parts; raises `FormatError`."""
    match content:
        case None:
            return ""
        case str():
            return content
        case list():
            return "".join(_part_text(part, f"{place}[{i}]") for i, part in enumerate(content))
        case _:
            raise FormatError(f"{place}: expected text, got {shown(content)}")


def read_content(content: JsonValue, place: str, notes: Notes) -> Content:
    """A message's content by kind; raises `FormatError` for parts of other kinds, e.g. images."""
    if not isinstance(content, list):
        return Content(text=text_of(content, place))
    parts = Content()
    for index, part in enumerate(content):
        at = f"{place}[{index}]"
        match part:
            case {"type": "thinking", "thinking": str(text)}:
                parts.reasoning += text
            case {"type": "redacted_thinking"}:
                notes.dropped["redacted_thinking"] += 1
            case {"type": "tool_use", "name": str(name)} if isinstance(part, dict):
                parts.calls.append(call_of_fields(name, part.get("input"), f"{at}.input"))
                if isinstance(call_id := part.get("id"), str):
                    parts.call_ids.append(call_id)
                    notes.dropped["ids of calls"] += 1
            case {"type": "tool_result"} if isinstance(part, dict):
                answered = part.get("tool_use_id")
                returned = text_of(part.get("content"), f"{at}.content")
                parts.results.append((answered if isinstance(answered, str) else None, returned))
            case _:
                parts.text += _part_text(part, at)
    return parts


def call_of_fields(name: JsonValue, arguments: JsonValue, place: str) -> Call:
    """The call with this name and these arguments: an object, its JSON text, or null or empty."""
    if not isinstance(name, str) or not name.strip():
        raise FormatError(f"{place}: expected a function name, got {shown(name)}")
    if isinstance(arguments, str):
        try:
            arguments = from_text(arguments) if arguments.strip() else {}
        except FormatError as error:
            raise FormatError(f"{place}: {error}") from None
    if arguments is None or arguments == []:
        arguments = {}
    if not isinstance(arguments, dict):
        raise FormatError(f"{place}: expected an object, got {shown(arguments)}")
    return Call(name=name, arguments=arguments)


def _part_text(part: JsonValue, place: str) -> str:
    match part:
        case str():
            return part
        case {"type": "text" | "input_text" | "output_text", "text": str(text)}:
            return text
        case {"type": kind}:
            raise FormatError(f"{place}: expected a text part, got {shown(kind)}")
        case _:
            raise FormatError(f"{place}: expected a text part, got {shown(part)}")
