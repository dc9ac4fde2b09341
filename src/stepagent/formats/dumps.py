"""Records that are messages in other words, and those that are no trajectory at all.

Read as messages: `prompt` and `completion` (TRL), `query` and `answers` (xLAM, APIGen), `input` and
`output` lists of the Responses API. What else is known is refused with what it is and what to do.
"""

from pydantic import JsonValue

from stepagent.console.printable import printable, shown
from stepagent.formats.records import FormatError, Notes, from_text

Fields = dict[str, JsonValue]

_KNOWN = (
    (
        {"chosen", "rejected"},
        "a preference pair; expected an expert's dialogue (to learn from the chosen answers, write "
        "them as `messages`)",
    ),
    (
        {"system", "chat"},
        "a dialogue as one text (glaive); expected a list of messages with roles",
    ),
    (
        {"instruction", "output"},
        "an instruction and its answer (Alpaca); expected messages of the user and the assistant",
    ),
    ({"choices", "model"}, "a server's reply; expected the messages that it answers, and itself"),
    ({"request", "response"}, "a logged request; expected its messages, the reply at the end"),
    ({"role", "content"}, "a single message; expected a record with all messages of a dialogue"),
    ({"from", "value"}, "a single turn; expected a record with all turns of a dialogue"),
    ({"rows", "features"}, "a reply of the hub's viewer; expected the rows, one on each line"),
    ({"row", "row_idx"}, "a row of the hub's viewer; expected what stands under `row`"),
    ({"text"}, "plain text without roles; expected a list of messages with roles"),
)
"""Fields, and what a record that has them is."""


def refusal(record: Fields, formats: str) -> str:
    """Why a record has no format of ours: what it is, or what fields were found."""
    for fields, what in _KNOWN:
        if fields <= record.keys():
            return f"{what}; fields: {_listed(record)}"
    for key, value in record.items():
        if isinstance(value, list) and any(
            isinstance(v, dict) and (is_messages(v) or "conversations" in v) for v in value
        ):
            return f"records inside the field {shown(key)}; expected a file of that list alone"
    return (
        f"format not recognised from the fields {_listed(record)}; expected a record in one of the "
        f"formats {formats} (--format names one)"
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
    """The record with `messages` in place of other fields that hold the dialogue."""
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


def _messages(said: JsonValue, role: str) -> list[JsonValue]:
    return said if isinstance(said, list) else [{"role": role, "content": said}]


def _responses(items: list[JsonValue], notes: Notes) -> list[JsonValue]:
    """The items of the Responses API as messages; reasoning goes with what follows it."""
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
