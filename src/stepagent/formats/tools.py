"""Reads the function schemas of tools in the forms in use: bare, flat, nested, or as JSON text."""

from pydantic import JsonValue

from stepagent.console.printable import shown
from stepagent.formats.records import FormatError, Notes, from_text

Schema = dict[str, JsonValue]


def read_tools(tools: JsonValue, notes: Notes) -> list[Schema]:
    """The schemas, each as `{"type": "function", "function": ...}` if it is recognised."""
    expected = "tools: expected a list of function schemas, or its JSON text"
    try:
        tools = from_text(tools) if isinstance(tools, str) and tools.strip() else tools
        entries = tools if isinstance(tools, list) else [tools] if tools else []
        entries = [from_text(entry) if isinstance(entry, str) else entry for entry in entries]
    except FormatError as error:
        raise FormatError(f"{expected}: {error}") from None
    schemas: list[Schema] = []
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(tools, list):
            raise FormatError(f"{expected}, got {shown(entry)}")
        schemas.append(function_schema(entry))
        if schemas[-1] != entry:
            notes.renamed["tools to function schemas"] += 1
    return schemas


def function_schema(tool: Schema) -> Schema:
    """A tool as `{"type": "function", "function": ...}`; other kinds of tools stay unchanged."""
    if isinstance(tool.get("function"), dict):
        return tool if tool.get("type") else {"type": "function", "function": tool["function"]}
    if not isinstance(tool.get("name"), str) or tool.get("type") not in (None, "function"):
        return tool
    if not tool.keys() & {"parameters", "input_schema", "description"}:
        return tool
    names = {"input_schema": "parameters"}
    function = {names.get(key, key): value for key, value in tool.items() if key != "type"}
    return {"type": "function", "function": function}
