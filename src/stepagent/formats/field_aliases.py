"""Recognises records by their fields: dialogues under other names, and kinds that are refused.

Converted to messages: `prompt` and `completion` (TRL), `query` and `answers` (xLAM, APIGen), and
the `input` and `output` lists of the Responses API. Other known kinds of records are refused with
what they are and what to do.
"""

from pydantic import JsonValue

from stepagent.console.printable import printable, shown
from stepagent.formats.records import FormatError, Notes, from_text

Fields = dict[str, JsonValue]

_KNOWN = (
    (
        {"chosen", "rejected"},
        "a preference pair; expected an expert's dialogue (to train on the chosen answers, write "
        "them as `messages`)",
    ),
    (
        {"system", "chat"},
        "a dialogue as a single text (glaive); expected a list of messages with roles",
    ),
    (
        {"instruction", "output"},
        "an instruction and its answer (Alpaca); expected messages of the user and the assistant",
    ),
    ({"choices", "model"}, "a server's reply; expected the whole dialogue, with the reply in it"),
    ({"request", "response"}, "a logged request; expected its messages with the reply at the end"),
    ({"role", "content"}, "a single message; expected a record with all messages of a dialogue"),
    ({"from", "value"}, "a single turn; expected a record with all turns of a dialogue"),
    ({"rows", "features"}, "a reply of the hub's viewer; expected its rows, one per line"),
    ({"row", "row_idx"}, "a row of the hub's viewer; expected the content of `row`"),
    ({"text"}, "plain text without roles; expected a list of messages with roles"),
)
"""Fields, and the kind of record that has them with what was expected instead."""


def refusal(record: Fields, formats: str) -> str:
    """Why a record is in none of the `formats`: what it is instead, or which fields it has."""
    for fields, what in _KNOWN:
        if fields <= record.keys():
            return f"{what}; fields: {_listed(record)}"
    for key, value in record.items():
        if isinstance(value, list) and any(
            isinstance(v, dict) and (is_messages(v) or "conversations" in v) for v in value
        ):
            return f"records inside the field {shown(key)}; expected a file with only that list"
    return (
        f"unknown format with the fields {_listed(record)}; expected one of {formats} (choose with "
        "--format)"
    )


def is_messages(record: Fields) -> bool:
    """Whether `as_messages` turns the record into one with messages."""
    match record:
        case {"messages": _}:
            return True
        case {"prompt": str() | list(), "completion": str() | list()}:
            return True
        case {"query": str(), "answers": _, "tools": _}:
            return True
        case {"input": str() | list(), "output": list()} | {"input": list(), "output": str()}:
            return True
    return False


def as_messages(record: Fields, notes: Notes) -> Fields:
    """The record with its dialogue under `messages`, whatever fields held it before."""
    if "messages" in record or not is_messages(record):
        return record
    match record:
        case {"prompt": prompt, "completion": completion}:
            old = ("prompt", "completion")
            messages = [*_messages(prompt, "user"), *_messages(completion, "assistant")]
        case {"query": query, "answers": answers}:
            old = ("query", "answers")
            calls = from_text(answers) if isinstance(answers, str) else answers
            messages = [*_messages(query, "user"), {"role": "assistant", "tool_calls": calls}]
        case _:
            old = ("input", "output")
            items = [*_messages(record["input"], "user"), *_messages(record["output"], "assistant")]
            messages = _responses(items, notes)
    notes.renamed[f"{' and '.join(old)} to messages"] += 1
    return {key: value for key, value in record.items() if key not in old} | {"messages": messages}


def _messages(content: JsonValue, role: str) -> list[JsonValue]:
    return content if isinstance(content, list) else [{"role": role, "content": content}]


def _responses(items: list[JsonValue], notes: Notes) -> list[JsonValue]:
    """The items of the Responses API as messages; reasoning joins the message after it."""
    messages: list[JsonValue] = []
    thoughts: list[str] = []
    for index, item in enumerate(items):
        match item:
            case {"type": "reasoning"} if isinstance(item, dict):
                thoughts += _summary(item.get("content") or item.get("summary"))
                notes.dropped["encrypted_content"] += bool(item.get("encrypted_content"))
                continue
            case {"type": "function_call", "name": name} if isinstance(item, dict):
                function = {"name": name, "arguments": item.get("arguments")}
                call = {"id": item.get("call_id"), "function": function}
                message: Fields = {"role": "assistant", "tool_calls": [call]}
            case {"type": "function_call_output", "output": output} if isinstance(item, dict):
                message = {"role": "tool", "content": output, "tool_call_id": item.get("call_id")}
            case {"role": role, "content": content}:
                message = {"role": role, "content": content}
            case {"type": kind}:
                raise FormatError(
                    f"items[{index}]: expected a message or a call, got {shown(kind)}"
                )
            case _:
                raise FormatError(f"items[{index}]: expected a message, got {shown(item)}")
        if thoughts and message["role"] == "assistant":
            message["reasoning_content"] = "\n\n".join(thoughts)
            thoughts = []
        messages.append(message)
    return messages


def _summary(parts: JsonValue) -> list[str]:
    texts = [p.get("text") for p in parts if isinstance(p, dict)] if isinstance(parts, list) else []
    return [text for text in texts if isinstance(text, str) and text]


def _listed(record: Fields) -> str:
    return ", ".join(printable(key) for key in list(record)[:8]) or "none"
