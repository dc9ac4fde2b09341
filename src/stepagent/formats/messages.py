"""Messages with roles, as TRL and Hugging Face data sets have them, and OpenAI's fine-tuning files.

TRL: `{"messages": [{"role", "content", "tool_calls"}], "tools": [...]}`; the arguments of a call
are an object and all other fields are free. OpenAI: the arguments are a JSON string, `weight: 0`
takes an agent's message out of the loss, calls have ids, and no other field is allowed. Both are
read alike.

An OpenAI file cannot say more than its messages. What is lost there: id, task, score, success,
truncation, rewards, metadata, where the instruction ends and the first observation begins, and the
border of thought and action where the text is ambiguous. All texts and calls, in order, are kept.

Ids of calls are numbered anew, names of user messages are dropped, and `thinking` becomes
`reasoning_content`.
"""

import json
from collections.abc import Sequence
from typing import Literal

from pydantic import JsonValue

from stepagent.actions import Call
from stepagent.formats.dialogue import Dialogue, Header, read_dialogue, write_dialogue
from stepagent.formats.records import JSON, KEY, Extras, FormatError, checked, id_of
from stepagent.formats.turns import Style, Turn
from stepagent.trajectories import parse, shown
from stepagent.types import NonEmpty, Record, Trajectory

TRL = Style(name="messages", reasoning="read")
OPENAI = Style(name="messages", marks_context=True)
RESERVED = {"messages", "tools", "id", "task", KEY}


class Function(Record):
    """What is called, and with what."""

    name: NonEmpty
    arguments: JsonValue


class ToolCall(Record):
    """One call of a message."""

    function: Function
    type: Literal["function"] = "function"
    id: str | None = None


class Message(Record):
    """One message."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: JsonValue = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    weight: Literal[0, 1] | None = None
    reasoning_content: str | None = None
    thinking: str | None = None


class MessagesRecord(Record, extra="allow"):
    """One line of a file; fields that are not named here become metadata."""

    messages: list[Message]
    tools: JsonValue = None
    """A list, or a list as JSON text (older data sets)."""
    id: JsonValue = None
    task: str | None = None
    stepagent: Extras = Extras()


def read_messages(record: dict[str, JsonValue], name: str, task: str) -> Trajectory:
    """The trajectory of a record; name and task are those of a record that has none itself."""
    found = checked(record, MessagesRecord)
    header = Header(
        id=id_of(found.id, "id") or name,
        task=found.task or task,
        tools=_tools(found.tools),
        columns=found.model_extra or {},
    )
    return read_dialogue(_turns(found.messages), TRL, header, found.stepagent)


def write_trl(trajectory: Trajectory) -> dict[str, JsonValue]:
    """The record for TRL; importing it gives the same trajectory."""
    dialogue = write_dialogue(trajectory, TRL, RESERVED)
    return {
        "id": trajectory.id,
        "task": trajectory.task,
        "messages": _messages(dialogue, openai=False),
        **_tools_field(trajectory),
        **dialogue.columns,
        **dialogue.extras.field(),
    }


def write_openai(trajectory: Trajectory) -> dict[str, JsonValue]:
    """The record for OpenAI's fine-tuning; the start of this module says what is lost."""
    dialogue = write_dialogue(trajectory, OPENAI, RESERVED)
    parallel = {k: v for k, v in dialogue.columns.items() if k == "parallel_tool_calls"}
    return {
        "messages": _messages(dialogue, openai=True),
        **_tools_field(trajectory),
        **parallel,
    }


def text_of(content: JsonValue, place: str) -> str:
    """The text of a message's content, which may be a list of parts; only text is allowed."""
    match content:
        case None:
            return ""
        case str():
            return content
        case list():
            return "".join(_part_text(part, f"{place}[{i}]") for i, part in enumerate(content))
        case _:
            raise FormatError(f"{place}: expected text, got {shown(content)}")


def _part_text(part: JsonValue, place: str) -> str:
    match part:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": kind}:
            raise FormatError(f"{place}: expected a text part, got {shown(kind)}")
        case _:
            raise FormatError(f"{place}: expected a text part, got {shown(part)}")


def _turns(messages: Sequence[Message]) -> list[Turn]:
    turns = []
    call_id = None
    for index, message in enumerate(messages):
        place = f"messages[{index}]"
        text = text_of(message.content, f"{place}.content")
        calls = message.tool_calls or []
        if message.role != "assistant":
            if message.tool_call_id and call_id and message.tool_call_id != call_id:
                raise FormatError(
                    f"{place}.tool_call_id: expected that of the call before, {shown(call_id)}, "
                    f"got {shown(message.tool_call_id)}"
                )
            turns.append(Turn(role=message.role, text=text))
            continue
        if len(calls) > 1:
            raise FormatError(
                f"{place}.tool_calls: expected one call, since a step is one action, "
                f"got {len(calls)} in parallel"
            )
        if not text and not calls:
            raise FormatError(f"{place}: expected text or a tool call, got neither")
        call_id = calls[0].id if calls else None
        turns.append(
            Turn(
                role="agent",
                text=text,
                reasoning=message.reasoning_content or message.thinking or "",
                call=_call(calls[0].function, f"{place}.tool_calls[0]") if calls else None,
                learnt=message.weight != 0,
            )
        )
    return turns


def _call(function: Function, place: str) -> Call:
    arguments = function.arguments
    if isinstance(arguments, str):
        parsed = parse(arguments.encode() + b"\n", JSON)
        if isinstance(parsed, str):
            raise FormatError(f"{place}.function.arguments: {parsed.split('; expected')[0]}")
        arguments = parsed.model_extra
    if not isinstance(arguments, dict):
        raise FormatError(f"{place}.function.arguments: expected an object, got {shown(arguments)}")
    return Call(name=function.name, arguments=arguments)


class Tools(Record):
    """The functions that can be called."""

    tools: list[dict[str, JsonValue]]


def _tools(tools: JsonValue) -> list[dict[str, JsonValue]]:
    if not tools:
        return []
    if not isinstance(tools, str):
        return checked({"tools": tools}, Tools).tools
    parsed = parse(b'{"tools":%b}\n' % tools.encode(), Tools)
    if isinstance(parsed, str):
        raise FormatError("tools: expected a list of function schemas, or its JSON text")
    return parsed.tools


def _tools_field(trajectory: Trajectory) -> dict[str, JsonValue]:
    return {"tools": list(trajectory.tools)} if trajectory.tools else {}


def _messages(dialogue: Dialogue, *, openai: bool) -> list[JsonValue]:
    messages: list[JsonValue] = []
    calls, called = 0, ""
    for turn in dialogue.turns:
        message: dict[str, JsonValue] = {"role": "assistant" if turn.role == "agent" else turn.role}
        if turn.text or not turn.call:
            message["content"] = turn.text
        if turn.reasoning:
            message["reasoning_content"] = turn.reasoning
        if turn.call:
            calls, called = calls + 1, turn.call.name
            message["tool_calls"] = [_written_call(turn.call, calls if openai else None)]
        if turn.role == "tool":
            message |= {"tool_call_id": f"call_{calls}"} if openai else {"name": called}
        if not turn.learnt:
            message["weight"] = 0
        messages.append(message)
    return messages


def _written_call(call: Call, number: int | None) -> dict[str, JsonValue]:
    if number is None:
        return {
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
    arguments = json.dumps(call.arguments, ensure_ascii=False, separators=(",", ":"))
    return {
        "id": f"call_{number}",
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }
