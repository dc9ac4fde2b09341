"""Chat messages with roles: TRL and Hugging Face data sets, and OpenAI's fine-tuning files.

TRL: `{"messages": [{"role", "content", "tool_calls"}], "tools": [...]}`; the arguments of a call
are an object, and other fields are free. OpenAI: the arguments are a JSON string, `weight: 0`
excludes an assistant message from the loss, calls have ids, and other fields are not allowed. Both
are read in the same way.

An OpenAI file holds nothing but messages. Lost in it are id, task, score, success, truncation,
rewards, metadata, the boundary between instruction and first observation, and the boundary between
thought and action where the text is ambiguous. All texts and calls are kept, in order.

Ids of calls are renumbered, names of user messages are dropped, and `thinking` becomes
`reasoning_content`.
"""

import json

from pydantic import JsonValue

from stepagent.formats.chat import SYSTEM_COLUMNS, Message, read_turns, system_turn, turn_list
from stepagent.formats.dialogue import Dialogue, Header, read_dialogue, write_dialogue
from stepagent.formats.field_aliases import as_messages
from stepagent.formats.records import KEY, Extras, Notes, checked, id_of
from stepagent.formats.tools import function_schema, read_tools
from stepagent.formats.turns import Style
from stepagent.rendering.actions import Call
from stepagent.types import Record, Trajectory

TRL = Style(name="messages", reasoning="read")
OPENAI = Style(name="messages", marks_context=True)
RESERVED = {"messages", "tools", "functions", "id", "task", *SYSTEM_COLUMNS, KEY}
_FIELDS = {"from": "role", "value": "content"}


class MessagesRecord(Record, extra="allow"):
    """One line of a file; fields that are not named here become metadata."""

    messages: list[Message]
    tools: JsonValue = None
    """A list, or its JSON text (older data sets)."""
    id: JsonValue = None
    task: str | None = None
    stepagent: Extras = Extras()


def read_messages(
    record: dict[str, JsonValue], name: str, task: str, notes: Notes | None = None
) -> Trajectory:
    """Reads a record; `name` is its id and `task` its task if it has none itself."""
    notes = Notes() if notes is None else notes
    record = as_messages(record, notes)
    if "messages" in record:
        record = record | {"messages": turn_list(record["messages"], "messages", _FIELDS)}
    chat = checked(record, MessagesRecord, notes)
    columns = dict(chat.model_extra or {})
    tools = chat.tools
    if not tools and isinstance(columns.get("functions"), list):
        tools = columns.pop("functions")
        notes.renamed["functions to tools"] += 1
    turns = read_turns(chat.messages, "messages", notes, has_tools=bool(tools))
    turns = [*system_turn(columns, turns, notes), *turns]
    header = Header(
        id=id_of(chat.id, "id") or name,
        task=chat.task or task,
        tools=read_tools(tools, notes),
        columns=columns,
    )
    return read_dialogue(turns, TRL, header, chat.stepagent)


def write_trl(trajectory: Trajectory) -> dict[str, JsonValue]:
    """The trajectory as a record for TRL; importing it gives the same trajectory."""
    dialogue = write_dialogue(trajectory, TRL, RESERVED)
    tools = list(trajectory.tools)
    # Schemas that the import would change are kept among the extras.
    plain = all(function_schema(tool) == tool for tool in tools)
    extras = dialogue.extras.model_copy(update={"tools": [] if plain else tools})
    return {
        "id": trajectory.id,
        "task": trajectory.task,
        "messages": _messages(dialogue, openai=False),
        **({"tools": [*tools]} if tools and plain else {}),
        **dialogue.columns,
        **extras.field(),
    }


def write_openai(trajectory: Trajectory) -> dict[str, JsonValue]:
    """The trajectory as a record for OpenAI's fine-tuning; see the module for what is lost."""
    dialogue = write_dialogue(trajectory, OPENAI, RESERVED)
    parallel = {k: v for k, v in dialogue.columns.items() if k == "parallel_tool_calls"}
    return {
        "messages": _messages(dialogue, openai=True),
        **(
            {"tools": [function_schema(tool) for tool in trajectory.tools]}
            if trajectory.tools
            else {}
        ),
        **parallel,
    }


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
