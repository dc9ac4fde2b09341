"""Messages with roles as turns, by whatever names roles, thoughts and calls go."""

import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import JsonValue, model_validator

from stepagent.actions import split_thinking
from stepagent.console.printable import shown
from stepagent.formats.content import Content, call_of_fields, read_content, text_of
from stepagent.formats.records import Dumped, FormatError, Notes, checked, from_text
from stepagent.formats.turns import Turn
from stepagent.types import NonEmpty

_NAMES = {
    "system": ["system"],
    "developer": ["developer"],
    "user": ["user", "human"],
    "agent": ["assistant", "gpt", "model", "agent", "ai", "bot", "chatgpt"],
    "call": ["function_call", "tool_call"],
    "tool": ["tool"],
    "answer": ["function", "function_response", "tool_response", "tool_result", "observation",
               "environment", "env", "ipython"],
}  # fmt: skip
ROLES = {name: role for role, names in _NAMES.items() for name in names}
"""What a turn is, by the name of its role; an answer is a tool's if a call came before it."""

SYSTEM_COLUMNS = ("system", "system_prompt", "system_message", "systemPrompt")
"""Fields of a record that hold its system message."""

CANONICAL = {"system", "developer", "user", "human", "assistant", "gpt", "tool"}
"""The names that mean the same in every file."""


class Function(Dumped):
    """What is called, and with what."""

    name: NonEmpty
    arguments: JsonValue = None


class ToolCall(Dumped):
    """One call of a message."""

    function: Function
    type: Literal["function"] = "function"
    id: str | None = None
    index: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _nested(cls, value: Any) -> Any:
        """A call that is written flat, as Hermes and LangChain do, with its function inside."""
        if not isinstance(value, dict) or "function" in value or "name" not in value:
            return value
        rest = {k: v for k, v in value.items() if k not in ("name", *_ARGUMENTS)}
        if rest.get("type") in ("tool_call", "function_call", "tool_use"):
            del rest["type"]
        return rest | {"function": {"name": value["name"], "arguments": _arguments(value)}}


class Message(Dumped):
    """One message, or one turn of ShareGPT."""

    role: str
    content: JsonValue = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: Function | None = None
    tool_call_id: str | None = None
    weight: Literal[0, 1] | None = None
    loss: bool | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    thinking: str | None = None


def turn_list(turns: JsonValue, where: str, names: dict[str, str]) -> JsonValue:
    """The turns in the field `where`, also from JSON text; fields take the names given here."""
    if isinstance(turns, str):
        try:
            turns = from_text(turns)
        except FormatError as error:
            raise FormatError(f"{where}: expected a list, or its JSON text: {error}") from None
    if not isinstance(turns, list):
        return turns
    return [
        {names.get(key, key): value for key, value in turn.items()}
        if isinstance(turn, dict) and not turn.keys() & set(names.values())
        else turn
        for turn in turns
    ]


def system_turn(columns: dict[str, JsonValue], turns: Sequence[Turn], notes: Notes) -> list[Turn]:
    """The turn of a system message that stands in a column, which it is taken out of."""
    said: list[Turn] = []
    for name in SYSTEM_COLUMNS:
        value = columns.get(name)
        if not isinstance(value, str | list) or (
            value
            and isinstance(value, list)
            and not all(isinstance(part, dict) and part.get("type") == "text" for part in value)
        ):
            continue
        turn = Turn(role="system", text=text_of(columns.pop(name), name))
        if not turn.text.strip() or turn in said or turn in turns[:1]:
            continue
        notes.renamed[f"{name} to a system message"] += 1
        said.append(turn)
    notes.num_systems += bool(said) or (bool(turns) and turns[0].role in ("system", "developer"))
    return said


def read_turns(
    messages: Sequence[Message], where: str, notes: Notes, *, has_tools: bool = False
) -> list[Turn]:
    """The turns of messages, which stand in the field `where` of their record.

    Where the record `has_tools`, a call may be written in the text between tags, as Hermes does.
    """
    turns: list[Turn] = []
    called = False
    call_id: str | None = None
    # Where some turns are marked as learnt, as AgentGym does, the others are not.
    marked = any(message.loss for message in messages)
    for index, message in enumerate(messages):
        place = f"{where}[{index}]"
        role = _role(message, place)
        content = _content(message, role, place, notes)
        if has_tools:
            _take_tags(content, role, notes)
        if role in ("agent", "call"):
            called, call_id = bool(content.calls), next(iter(content.call_ids), None)
            learnt = message.loss is True or (not marked and message.loss is None)
            learnt = learnt and message.weight != 0
            turns.append(_agent_turn(content, place).model_copy(update={"learnt": learnt}))
            continue
        if content.calls or content.reasoning:
            raise FormatError(f"{place}: expected calls and reasoning of the agent only")
        if role == "answer":
            role = "tool" if called else "user"
            _note_role(message.role, role, notes)
        seen = [(id, Turn(role="tool", text=text)) for id, text in content.results]
        if content.text or not seen:
            seen.append((message.tool_call_id, Turn(role=role, text=content.text)))
        for answered, _ in seen:
            if answered and call_id and answered != call_id:
                raise FormatError(
                    f"{place}.tool_call_id: expected that of the call before, {shown(call_id)}, "
                    f"got {shown(answered)}"
                )
        turns += [turn for _, turn in seen]
    return turns


def _role(message: Message, place: str) -> str:
    role = ROLES.get(message.role.strip().lower())
    if role is None:
        field = type(message).model_fields["role"].alias or "role"
        raise FormatError(
            f"{place}.{field}: expected one of {', '.join(ROLES)}, got {shown(message.role)}"
        )
    return role


def _agent_turn(content: Content, place: str) -> Turn:
    if content.results:
        raise FormatError(f"{place}: expected results of tools in a message of the user")
    if len(content.calls) > 1:
        raise FormatError(
            f"{place}.tool_calls: expected one call, since a step is one action, "
            f"got {len(content.calls)} in parallel"
        )
    if not content.text and not content.calls:
        raise FormatError(f"{place}: expected text or a tool call, got neither")
    call = content.calls[0] if content.calls else None
    return Turn(role="agent", text=content.text, reasoning=content.reasoning, call=call)


def _take_tags(content: Content, role: str, notes: Notes) -> None:
    """Takes calls and their results out of the tags in a text; what is no JSON stays text."""
    if role == "agent" and not content.calls and (tagged := _CALLS.fullmatch(content.text)):
        try:
            calls = [checked(from_text(t), ToolCall) for t in _CALL.findall(tagged["calls"])]
        except FormatError:
            return
        content.text = tagged["before"].rstrip()
        for call in calls:
            function = call.function
            content.calls.append(call_of_fields(function.name, function.arguments, "<tool_call>"))
        notes.renamed["<tool_call> in a text to tool_calls"] += len(calls)
    elif role in ("tool", "answer"):
        text = content.text.strip()
        if not (text.startswith("<tool_response>") and text.endswith("</tool_response>")):
            return
        content.text = text.removeprefix("<tool_response>").removesuffix("</tool_response>").strip()
        notes.renamed["<tool_response> around a text to a tool's answer"] += 1


def _note_role(name: str, role: str, notes: Notes) -> None:
    if name not in CANONICAL:
        notes.renamed[f"role {name} to {role}"] += 1


def _content(message: Message, role: str, place: str, notes: Notes) -> Content:
    """All that a message says, whatever its fields are called."""
    field = type(message).model_fields["content"].alias or "content"
    if role == "call":
        found = _call_content(message.content, f"{place}.{field}")
    else:
        found = read_content(message.content, f"{place}.{field}", notes)
    if role in ("agent", "call"):
        _note_role(message.role, "assistant", notes)
    notes.dropped["names of messages"] += bool(message.name)
    notes.dropped["ids of calls"] += bool(message.tool_call_id)
    for old, thought in (("thinking", message.thinking), ("reasoning", message.reasoning)):
        if thought:
            notes.renamed[f"{old} to reasoning_content"] += 1
    thoughts = [message.reasoning_content, message.reasoning, message.thinking, found.reasoning]
    found.reasoning = "\n\n".join(dict.fromkeys(filter(None, thoughts)))
    for number, call in enumerate(message.tool_calls or ()):
        at = f"{place}.tool_calls[{number}].function.arguments"
        found.calls.append(call_of_fields(call.function.name, call.function.arguments, at))
        if call.id:
            found.call_ids.append(call.id)
            notes.dropped["ids of calls"] += 1
    if legacy := message.function_call:
        at = f"{place}.function_call.arguments"
        written = call_of_fields(legacy.name, legacy.arguments, at)
        if written not in found.calls:
            found.calls.append(written)
        notes.renamed["function_call to tool_calls"] += 1
    return found


def _call_content(content: JsonValue, place: str) -> Content:
    """A turn that is a call: `{"name", "arguments"}`, mostly as JSON text, a thought before it."""
    found = Content()
    if isinstance(content, str):
        thought, text = split_thinking(content)
        found.reasoning = thought or ""
        try:
            content = from_text(re.sub(r"\A\s*<tool_call>|</tool_call>\s*\Z", "", text))
        except FormatError as error:
            raise FormatError(f"{place}: expected a call as JSON text: {error}") from None
    for call in content if isinstance(content, list) else [content]:
        try:
            said = checked(call, ToolCall).function
        except FormatError as error:
            raise FormatError(f"{place}: {error}") from None
        found.calls.append(call_of_fields(said.name, said.arguments, f"{place}.arguments"))
    return found


_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_CALLS = re.compile(
    r"(?P<before>(?:(?!<tool_call>).)*)(?P<calls>(?:<tool_call>(?:(?!</?tool_call>).)*</tool_call>\s*)+)",
    re.DOTALL,
)

_ARGUMENTS = ("arguments", "args", "parameters", "input")


def _arguments(call: dict[str, JsonValue]) -> JsonValue:
    return next((call[name] for name in _ARGUMENTS if name in call), None)
