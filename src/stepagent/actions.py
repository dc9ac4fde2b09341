"""What an action's text can hold: a thought before it (ReAct), or a tool call."""

import json
import re
from typing import NamedTuple

from pydantic import JsonValue, ValidationError

from stepagent.types import Record


class Said(NamedTuple):
    """What an agent says in one turn."""

    thought: str
    """Empty if there was none."""
    action: str


class Call(Record):
    """A tool call; as the action of a step it is compact JSON."""

    name: str
    arguments: dict[str, JsonValue]

    def action(self) -> str:
        """The call as text."""
        return json.dumps(self.model_dump(), ensure_ascii=False, separators=(",", ":"))


def call_of(action: str) -> Call | None:
    """The call that an action is; None if it is another text, if only by a space."""
    if not action.startswith('{"name":'):
        return None
    try:
        call = Call.model_validate_json(action)
    except ValidationError:
        return None
    return call if call.action() == action else None


def same_action(action: str, other: str) -> bool:
    """Whether two actions are the same: equal text, or calls that differ in the order of arguments.

    A model writes the arguments of a call in the order that its chat template has taught it.
    """
    if action.strip() == other.strip():
        return True
    call = call_of(action)
    return call is not None and call == call_of(other)


def written_call(text: str) -> Call | None:
    """The first tool call that a model wrote, in whatever markup: a JSON object that names it."""
    decoder = json.JSONDecoder()
    for brace in re.finditer(r"\{", text):
        try:
            found, _ = decoder.raw_decode(text, brace.start())
        except (json.JSONDecodeError, RecursionError):
            continue
        if isinstance(found, dict) and "name" in found:
            arguments = found.get("arguments", found.get("parameters"))
            try:
                return Call.model_validate({"name": found["name"], "arguments": arguments})
            except ValidationError:
                continue
    return None


def split_react(text: str) -> Said:
    """The thought and the action of `Thought: ... Action: ...`; other text is all action."""
    # The last label counts, since thoughts quote actions; one within a line is no label.
    labels = list(re.finditer(r"^Action:", text, re.MULTILINE))
    action = text[labels[-1].end() :].strip() if labels else ""
    if not action:
        return Said("", text)
    thought = text[: labels[-1].start()].strip().removeprefix("Thought:").strip()
    return Said(thought, action)
