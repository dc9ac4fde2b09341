"""Tool calls as a chat template writes them, and as they are read back.

How a template writes a call is found out from calls of marks: what stands before the name, between
name and arguments, and after the arguments. No family of models is known by name. A call is written
that way only if it can be read back; else the trajectory gets the text form, which every template
can write: the schemas stand before the instruction, an action that is a call is its compact JSON,
and what a tool returns is an observation like any other.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import product

from pydantic import JsonValue, ValidationError

from stepagent.actions import Call, Said
from stepagent.chat_template import CALL_ID, USER, Markup, Message, TemplateError, render_messages
from stepagent.encoding import Encoder
from stepagent.trajectories import printable

Tools = Sequence[dict[str, JsonValue]]
"""Function schemas."""

EXAMPLE = Call(name="callname0mark", arguments={"callkey0mark": "callvalue0mark"})
SILENT: tuple[Message, ...] = ({}, {"content": ""}, {"content": None})
"""How a message says that there is no text beside a call; templates ask for one or another."""

INTRODUCTION = (
    "You can call the tools below. To call one, say nothing but a JSON object such as "
    '{"name":"TOOL","arguments":{"PARAMETER":"VALUE"}}'
)
"""Stands before the schemas in the text form."""


class CallError(ValueError):
    """A chat template cannot write a call, or not so that it can be read back; one line."""


def tools_as_text(tools: Tools) -> str:
    """What a prompt says of tools in the text form."""
    schemas = (json.dumps(_function(tool), ensure_ascii=False) for tool in tools)
    return "\n".join([INTRODUCTION, *schemas])


def _function(tool: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """The schema itself; some files have it without the envelope `{"type", "function"}`."""
    function = tool.get("function")
    return function if isinstance(function, dict) else tool


class TemplateCalls:
    """How a chat template writes calls of some tools."""

    def __init__(self, encoder: Encoder, tools: Tools, markup: Markup) -> None:
        """`markup` is that of a dialogue with these tools.

        Raises `CallError` if the template does not show the tools or does not write calls so that
        they can be read back.
        """
        self._encoder = encoder
        self._tools = list(tools)
        self._markup = markup
        self._check_schemas()
        self._learn()

    def _check_schemas(self) -> None:
        """Raises `CallError` if a schema is not in the prompt, or writes control tokens there."""
        for tool in self._tools:
            for text in _texts(tool):
                if self._encoder.writes_control(text):
                    raise CallError("a tool's schema has a control token of the model in its text")
            for text in _shown_texts(_function(tool)):
                if not any(form in self._markup.before for form in _forms(text)):
                    raise CallError("chat template: leaves out the tools")

    def _learn(self) -> None:
        """Finds the form in which the template writes all of a call."""
        for self._as_text, self._silent in product((False, True), SILENT):
            try:
                said = self._said(EXAMPLE, "")
                self._before, self._between = _around(said)
            except (CallError, TemplateError):
                continue
            self._controls = self._encoder.controls(self._encoder.markup(said))
            if self.read(said) == Said("", EXAMPLE.action()):
                self.example: tuple[Message, str] = self._message(EXAMPLE, ""), said
                """A call as a message, and as the template writes it."""
                return
        raise CallError("chat template: does not write tool calls, or not so that they can be read")

    def write(self, call: Call, thought: str) -> list[int]:
        """Ids of a call, with the thought as the text before it.

        Raises `CallError` if a part of it would be lost or would write a control token.
        """
        ids = self._encoder.markup(self._said(call, thought))
        name = printable(call.name)
        if self._encoder.controls(ids) != self._controls:
            raise CallError(f"a call of '{name}' has a control token of the model in its text")
        found = self.read(self._encoder.text(ids, with_control=True))
        if found is None or not _is_call(found.action, call):
            raise CallError(f"chat template: loses a part of a call of '{name}'")
        if found.thought != thought.strip():
            raise CallError(f"chat template: loses the thought beside a call of '{name}'")
        return ids

    def read(self, text: str) -> Said | None:
        """The thought and the call in a text with control tokens; None if there is no call."""
        thought, mark, rest = text.partition(self._before)
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
        return Said(thought.strip(), call.action())

    def _message(self, call: Call, thought: str) -> Message:
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        function = {"name": call.name, "arguments": arguments if self._as_text else call.arguments}
        return {
            "role": "assistant",
            **({"content": thought} if thought else self._silent),
            "tool_calls": [{"type": "function", "id": CALL_ID, "function": function}],
        }

    def _said(self, call: Call, thought: str) -> str:
        """What the template writes between the mark of the assistant's turn and its end."""
        written = render_messages(
            self._encoder.tokenizer,
            [{"role": "user", "content": USER[0]}, self._message(call, thought)],
            self._tools,
            ask=False,
        )
        _, found, said = written.partition(f"{USER[0]}{self._markup.ask}{self._markup.lead}")
        if not found or self._markup.end not in said:
            raise CallError("chat template: writes a call elsewhere than after its mark")
        said = said[: said.rindex(self._markup.end)]
        if not thought and said.lstrip().startswith("None"):
            raise CallError("chat template: writes None where a call has no text beside it")
        return said


def _around(said: str) -> tuple[str, str]:
    """What is before the example's name, and between its name and its arguments."""
    before, name, rest = said.partition(EXAMPLE.name)
    brace = rest.find("{")
    if not name or brace < 0 or not before.strip():
        raise CallError("chat template: does not write a call as a name and a JSON object")
    return before.strip(), rest[:brace].strip()


def _is_call(action: str, call: Call) -> bool:
    return Call.model_validate_json(action) == call


def _texts(value: JsonValue) -> Iterator[str]:
    """All texts within a JSON value, names of fields included."""
    match value:
        case str():
            yield value
        case list():
            for inner in value:
                yield from _texts(inner)
        case dict():
            for key, inner in value.items():
                yield key
                yield from _texts(inner)


def _shown_texts(function: dict[str, JsonValue]) -> Iterator[str]:
    """What a prompt must show of a schema: names and what they mean."""
    yield from (v for k in ("name", "description") if isinstance(v := function.get(k), str))
    match function.get("parameters"):
        case {"properties": dict(properties)}:
            yield from properties


def _forms(text: str) -> Iterator[str]:
    """How a template may write a text: as it stands, trimmed, or within JSON."""
    yield text.strip()
    for ascii_only in (False, True):
        yield json.dumps(text, ensure_ascii=ascii_only)[1:-1]
