"""Reads chat messages as turns, under the many names in use for roles, thoughts and calls."""

import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import JsonValue, model_validator

from stepagent.console.printable import shown
from stepagent.formats.content import Content, call_of_fields, read_content, text_of
from stepagent.formats.records import Dumped, FormatError, Notes, checked, from_text
from stepagent.formats.turns import Turn
from stepagent.rendering.actions import split_thinking
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
"""Our role by the name of a role; an `answer` is a tool's if a call came before it."""

SYSTEM_COLUMNS = ("system", "system_prompt", "system_message", "systemPrompt")
"""Fields of a record that may hold its system message."""

CANONICAL = {"system", "developer", "user", "human", "assistant", "gpt", "tool"}
"""Names of roles with one meaning in every file; reading them is not noted as renaming."""


class Function(Dumped):
    """The name of a called function, and its arguments."""

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
        """Nests the function of a call that is written flat, as Hermes and LangChain do."""
        if not isinstance(value, dict) or "function" in value or "name" not in value:
            return value
        rest = {k: v for k, v in value.items() if k not in ("name", *_ARGUMENTS)}
        if rest.get("type") in ("tool_call", "function_call", "tool_use"):
            del rest["type"]
        return rest | {"function": {"name": value["name"], "arguments": _arguments(value)}}


class Message(Dumped):
    """One chat message; ShareGPT's turns differ only in the names of two fields."""

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
    """The turns of the field `where`, a list or its JSON text, with fields renamed by `names`."""
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
    """The system message, as a list of turns, that a field of the record holds, if any.

    The field is removed from `columns`. A message that the turns already begin with is left out.
    """
    systems: list[Turn] = []
    for name in SYSTEM_COLUMNS:
        value = columns.get(name)
        if not isinstance(value, str | list) or (
            value
            and isinstance(value, list)
            and not all(isinstance(part, dict) and part.get("type") == "text" for part in value)
        ):
            continue
        turn = Turn(role="system", text=text_of(columns.pop(name), name))
        if not turn.text.strip() or turn in systems or turn in turns[:1]:
            continue
        notes.renamed[f"{name} to a system message"] += 1
        systems.append(turn)
    notes.num_systems += bool(systems) or (bool(turns) and turns[0].role in ("system", "developer"))
    return systems


def read_turns(
    messages: Sequence[Message], where: str, notes: Notes, *, has_tools: bool = False
) -> list[Turn]:
    """The turns of the messages in the field `where` of a record.

    If the record `has_tools`, a call may be written in the text between tags, as Hermes does.
    Raises `FormatError`.
    """
    turns: list[Turn] = []
    called = False
    call_id: str | None = None
    # If some turns are marked to carry loss, as in AgentGym, the others carry none.
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
            raise FormatError(f"{place}: expected calls and reasoning in assistant messages only")
        if role == "answer":
            role = "tool" if called else "user"
            _note_role(message.role, role, notes)
        seen = [(id, Turn(role="tool", text=text)) for id, text in content.results]
        if content.text or not seen:
            seen.append((message.tool_call_id, Turn(role=role, text=content.text)))
        for answered, _ in seen:
            if answered and call_id and answered != call_id:
                raise FormatError(
                    f"{place}.tool_call_id: expected {shown(call_id)}, the id of the last call, "
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
        raise FormatError(f"{place}: a tool result; expected those in user messages only")
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
    """Moves calls and results from tags in the text to their fields; invalid JSON stays text."""
    if role == "agent" and not content.calls and (tagged := _CALLS.fullmatch(content.text)):
        try:
            calls = [checked(from_text(t), ToolCall) for t in _CALL.findall(tagged["calls"])]
        except FormatError:
            return
        content.text = tagged["before"].rstrip()
        for call in calls:
            function = call.function
            content.calls.append(call_of_fields(function.name, function.arguments, "<tool_call>"))
        notes.renamed["<tool_call> in text to tool_calls"] += len(calls)
    elif role in ("tool", "answer"):
        text = content.text.strip()
        if not (text.startswith("<tool_response>") and text.endswith("</tool_response>")):
            return
        content.text = text.removeprefix("<tool_response>").removesuffix("</tool_response>").strip()
        notes.renamed["<tool_response> in text to tool result"] += 1


def _note_role(name: str, role: str, notes: Notes) -> None:
    if name not in CANONICAL:
        notes.renamed[f"role {name} to {role}"] += 1


def _content(message: Message, role: str, place: str, notes: Notes) -> Content:
    """The text, reasoning and calls of a message, whatever its fields are called."""
    field = type(message).model_fields["content"].alias or "content"
    if role == "call":
        content = _call_content(message.content, f"{place}.{field}")
    else:
        content = read_content(message.content, f"{place}.{field}", notes)
    if role in ("agent", "call"):
        _note_role(message.role, "assistant", notes)
    notes.dropped["names of messages"] += bool(message.name)
    notes.dropped["ids of calls"] += bool(message.tool_call_id)
    for old, thought in (("thinking", message.thinking), ("reasoning", message.reasoning)):
        if thought:
            notes.renamed[f"{old} to reasoning_content"] += 1
    thoughts = [message.reasoning_content, message.reasoning, message.thinking, content.reasoning]
    content.reasoning = "\n\n".join(dict.fromkeys(filter(None, thoughts)))
    for number, call in enumerate(message.tool_calls or ()):
        at = f"{place}.tool_calls[{number}].function.arguments"
        content.calls.append(call_of_fields(call.function.name, call.function.arguments, at))
        if call.id:
            content.call_ids.append(call.id)
            notes.dropped["ids of calls"] += 1
    if legacy := message.function_call:
        at = f"{place}.function_call.arguments"
        written = call_of_fields(legacy.name, legacy.arguments, at)
        if written not in content.calls:
            content.calls.append(written)
        notes.renamed["function_call to tool_calls"] += 1
    return content


def _call_content(content: JsonValue, place: str) -> Content:
    """Reads a turn that is a call, an object or JSON text, with an optional thought before it."""
    turn = Content()
    if isinstance(content, str):
        thought, text = split_thinking(content)
        turn.reasoning = thought or ""
        try:
            content = from_text(re.sub(r"\A\s*<tool_call>|</tool_call>\s*\Z", "", text))
        except FormatError as error:
            raise FormatError(f"{place}: expected a call as JSON text: {error}") from None
    for call in content if isinstance(content, list) else [content]:
        try:
            function = checked(call, ToolCall).function
        except FormatError as error:
            raise FormatError(f"{place}: {error}") from None
        turn.calls.append(call_of_fields(function.name, function.arguments, f"{place}.arguments"))
    return turn


_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_CALLS = re.compile(
    r"(?P<before>(?:(?!<tool_call>).)*)(?P<calls>(?:<tool_call>(?:(?!</?tool_call>).)*</tool_call>\s*)+)",
    re.DOTALL,
)

_ARGUMENTS = ("arguments", "args", "parameters", "input")


def _arguments(call: dict[str, JsonValue]) -> JsonValue:
    return next((call[name] for name in _ARGUMENTS if name in call), None)
