"""Writes tool calls in a chat template's own format, and reads them back.

The format is found by rendering calls of placeholders: the text before the name, between name and
arguments, and after the arguments. No model family gets special treatment. The template's format is
used only if calls can be read back from it; else tools are plain text, which every template can
write: the schemas come before the instruction, a call is compact JSON, and a tool's result is an
ordinary observation.
"""

import json
import re
from collections.abc import Sequence
from itertools import product

from pydantic import JsonValue, ValidationError

from stepagent.console.printable import printable
from stepagent.rendering.actions import Call, ThoughtAndAction
from stepagent.rendering.chat_template import (
    CALL_ID,
    USER,
    Markup,
    Message,
    TemplateError,
    render_messages,
)
from stepagent.rendering.encoding import Encoder

Tools = Sequence[dict[str, JsonValue]]
"""Function schemas."""

EXAMPLE = Call(name="callname0mark", arguments={"callkey0mark": "callvalue0mark"})
SILENT: tuple[Message, ...] = ({}, {"content": ""}, {"content": None})
"""Ways to say that a message with a call has no text; templates differ in which they need."""

INTRODUCTION = (
    "You can call the tools below. To call one, say nothing but a JSON object such as "
    '{"name":"TOOL","arguments":{"PARAMETER":"VALUE"}}'
)
"""Comes before the schemas if tools are plain text."""


class CallError(ValueError):
    """A chat template cannot write a tool call losslessly; the message is one line."""


def tools_as_text(tools: Tools) -> str:
    """The description of tools in a prompt if they are plain text."""
    schemas = (json.dumps(_function(tool), ensure_ascii=False) for tool in tools)
    return "\n".join([INTRODUCTION, *schemas])


def _function(tool: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """The schema itself; some files lack the envelope `{"type": ..., "function": ...}`."""
    function = tool.get("function")
    return function if isinstance(function, dict) else tool


class TemplateCalls:
    """A chat template's format of calls to given tools."""

    def __init__(self, encoder: Encoder, tools: Tools, markup: Markup) -> None:
        """Finds the format; `markup` is that of a dialogue with these tools.

        Raises `CallError` if the template leaves out the tools, or if its calls cannot be read
        back.
        """
        self._encoder = encoder
        self._tools = list(tools)
        self._markup = markup
        self._check_schemas()
        self._learn()

    def _check_schemas(self) -> None:
        """Raises `CallError` if the prompt lacks a schema or a schema contains control tokens."""
        marked, marks = [], list[str]()
        for tool in self._tools:
            marked.append(_marked(tool, marks))
        before, shown = (self._before_first_turn(tools) for tools in (self._tools, marked))
        if not all(mark in shown for mark in marks):
            raise CallError("chat template: leaves out the tools")
        controls = [self._encoder.controls(self._encoder.markup(text)) for text in (before, shown)]
        if controls[0] != controls[1]:
            raise CallError("a tool's schema contains a control token of the model")

    def _before_first_turn(self, tools: Tools) -> str:
        messages = [{"role": "user", "content": USER[0]}]
        text = render_messages(self._encoder.tokenizer, messages, tools, ask=True)
        return text.partition(USER[0])[0]

    def _learn(self) -> None:
        """Finds a message format for which the template writes a whole call."""
        end = self._encoder.controls(self._encoder.markup(self._markup.end))
        for self._as_text, self._silent in product((False, True), SILENT):
            try:
                said = self._said(EXAMPLE, "")
                self._before, self._between = _around(said)
            except (CallError, TemplateError):
                continue
            ids = self._ids(said)
            self._controls = self._encoder.controls(ids)
            # A call that contains the end of a turn would be cut there.
            if set(end) & set(ids):
                continue
            if self.read(ids) == ThoughtAndAction("", EXAMPLE.action()):
                self.example: tuple[Message, str] = self._message(EXAMPLE, ""), said
                """A call as a message, and the template's text for it."""
                return
        raise CallError("chat template: cannot write tool calls that can be read back")

    def write(self, call: Call, thought: str) -> list[int]:
        """Ids of a call, with the thought as the text before it.

        Raises `CallError` if a part of it would be lost or would become a control token.
        """
        ids = self._ids(self._said(call, thought))
        name = printable(call.name)
        if self._encoder.controls(ids) != self._controls:
            raise CallError(f"a call of '{name}' contains a control token of the model")
        found = self.read(ids)
        if found is None or not _is_call(found.action, call):
            raise CallError(f"chat template: loses part of a call of '{name}'")
        if found.thought != thought.strip():
            raise CallError(f"chat template: loses the thought before a call of '{name}'")
        return ids

    def read(self, ids: list[int]) -> ThoughtAndAction | None:
        """The thought and the call in ids; None without a call, or if only text looks like one."""
        if not set(self._controls) <= set(ids):
            return None
        thought, mark, rest = self._encoder.text(ids, with_control=True).partition(self._before)
        if not mark:
            return None
        brace = max(0, rest.find("{"))
        name = rest[:brace].strip()
        if not name.endswith(self._between):
            return None
        try:
            arguments, _ = json.JSONDecoder().raw_decode(rest, brace)
            name = name.removesuffix(self._between).strip()
            call = Call.model_validate({"name": name, "arguments": arguments})
        except (json.JSONDecodeError, RecursionError, ValidationError):
            return None
        return ThoughtAndAction(thought.strip(), call.action())

    def _ids(self, said: str) -> list[int]:
        return self._encoder.markup(said, behind=self._markup.end)

    def _message(self, call: Call, thought: str) -> Message:
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        function = {"name": call.name, "arguments": arguments if self._as_text else call.arguments}
        return {
            "role": "assistant",
            **({"content": thought} if thought else self._silent),
            "tool_calls": [{"type": "function", "id": CALL_ID, "function": function}],
        }

    def _said(self, call: Call, thought: str) -> str:
        """The template's text for a call, between the start and the end of the assistant turn."""
        written = render_messages(
            self._encoder.tokenizer,
            [{"role": "user", "content": USER[0]}, self._message(call, thought)],
            self._tools,
            ask=False,
        )
        _, found, said = written.partition(f"{USER[0]}{self._markup.ask}{self._markup.lead}")
        if not found or self._markup.end not in said:
            raise CallError("chat template: does not write a call in the assistant's turn")
        said = said[: said.rindex(self._markup.end)]
        if not thought and said.lstrip().startswith("None"):
            raise CallError("chat template: writes None for a call without text")
        return said


def _around(said: str) -> tuple[str, str]:
    """The text before the example's name, and between its name and its arguments."""
    before, name, rest = said.partition(EXAMPLE.name)
    brace = rest.find("{")
    if not name or brace < 0 or not before.strip():
        raise CallError("chat template: does not write a call as a name and a JSON object")
    return before.strip(), rest[:brace].strip()


def _is_call(action: str, call: Call) -> bool:
    return Call.model_validate_json(action).is_same(call)


def _marked(tool: dict[str, JsonValue], marks: list[str]) -> dict[str, JsonValue]:
    """The schema with placeholders for names and descriptions, which are appended to `marks`."""

    def mark() -> str:
        marks.append(f"toolpart{len(marks)}mark")
        return marks[-1]

    found = _without_markup(tool)
    assert isinstance(found, dict)
    function = _function(found)
    for key in ("name", "description"):
        if isinstance(function.get(key), str):
            function[key] = mark()
    parameters = function.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    if isinstance(parameters, dict) and isinstance(properties, dict):
        names = {name: mark() for name in properties}
        parameters["properties"] = {names[name]: value for name, value in properties.items()}
        if isinstance(required := parameters.get("required"), list):
            parameters["required"] = [names.get(str(name), name) for name in required]
    return found


def _without_markup(value: JsonValue) -> JsonValue:
    """A JSON value whose texts have no character that could belong to a control token."""
    match value:
        case str():
            return re.sub(r"[^\w\s./-]", "x", value, flags=re.ASCII)
        case list():
            return [_without_markup(inner) for inner in value]
        case dict():
            return {key: _without_markup(inner) for key, inner in value.items()}
    return value
