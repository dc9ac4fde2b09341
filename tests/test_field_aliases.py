"""Records in the many forms that other programs and data sets use are read correctly."""

import json
from pathlib import Path
from typing import Any

import pytest

from stepagent.formats.import_export import READERS, WRITERS, Imported, read_foreign
from stepagent.formats.records import FormatError, Notes
from stepagent.formats.sharegpt import read_sharegpt
from test_import import error_of, lines, read

PEEK = {"name": "peek", "description": "Looks.", "parameters": {"type": "object", "properties": {}}}
FETCH = {
    "name": "fetch",
    "description": "Gets a thing.",
    "parameters": {"type": "object", "properties": {"what": {"type": "string"}}},
}
SCHEMAS = tuple({"type": "function", "function": tool} for tool in (PEEK, FETCH))
ASKED = {"role": "user", "content": "Look around, then stop."}
SEEN = {"role": "tool", "tool_call_id": "c1", "content": "a red wall"}
DONE = {"role": "assistant", "content": "Done."}
CALLED = '{"name":"peek","arguments":{}}'
EMPTY = {"refusal": None, "annotations": [], "audio": None, "function_call": None}


def told(found: Imported) -> list[Any]:
    (t,) = found.trajectories
    return [t.instruction, *((s.observation, s.thought, s.action) for s in t.steps),
            t.final_observation]  # fmt: skip


def calling(call: Any, **message: Any) -> dict[str, Any]:
    said = {"role": "assistant", "content": None, "tool_calls": [call], **message}
    return {"messages": [ASKED, said, SEEN, DONE], "tools": list(SCHEMAS)}


def function(arguments: Any = "{}", **call: Any) -> dict[str, Any]:
    named = {"name": "peek", "arguments": arguments}
    return {"id": "c1", "type": "function", "function": named, **call}


def thinking(content: str, **message: Any) -> dict[str, Any]:
    return {"messages": [ASKED, {"role": "assistant", "content": content, **message}]}


LOOKED = ["Look around, then stop.", ("", "", CALLED), ("a red wall", "", "Done."), ""]


@pytest.mark.parametrize(
    "record",
    [
        calling(function("")),
        calling(function(" \n")),
        calling(function(None)),
        calling(function("null")),
        calling(function({})),
        calling(function([])),
        calling({"id": "c1", "type": "function", "function": {"name": "peek"}}),
        calling(function(index=0)),
        calling(function(id=None, index=None, type=None)),
        calling({"name": "peek", "args": {}, "id": "c1", "type": "tool_call"}),
        calling({"name": "peek", "parameters": {}}),
        calling(function(), **EMPTY),
        calling(function(), content="", reasoning=None, name=None, loss=None),
        calling(function(), content=[]),
        calling(function(), function_call={"name": "peek", "arguments": "{}"}),
        {"messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": None,
                              "function_call": {"name": "peek", "arguments": ""}},
                      {"role": "function", "name": "peek", "content": "a red wall"},
                      DONE | EMPTY], "functions": [PEEK, FETCH]},
        calling(function()) | {"messages": json.dumps(calling(function())["messages"]),
                               "tools": json.dumps([PEEK, FETCH])},
        calling(function()) | {"tools": [json.dumps(PEEK), json.dumps(FETCH)]},
        {"conversations": calling(function())["messages"], "tools": list(SCHEMAS)},
        {"conversations": [
            {"from": "user", "value": "Look around, then stop."},
            {"from": "function_call", "value": "{\"name\": \"peek\", \"arguments\": {}}"},
            {"from": "tool_response", "value": "a red wall"},
            {"from": "assistant", "value": "Done."}], "tools": json.dumps([PEEK, FETCH])},
        {"messages": [
            {"from": "human", "value": "Look around, then stop."},
            {"from": "tool_call", "value": [{"name": "peek", "arguments": ""}]},
            {"from": "ipython", "value": "a red wall"},
            {"from": "model", "value": "Done."}], "tools": list(SCHEMAS)},
        {"messages": [
            ASKED,
            {"role": "assistant", "content": [
                {"type": "tool_use", "id": "c1", "name": "peek", "input": {}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "c1",
                 "content": [{"type": "text", "text": "a red wall"}]}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Done."}]}],
         "tools": [{**{k: v for k, v in tool.items() if k != "parameters"},
                    "input_schema": tool["parameters"]} for tool in (PEEK, FETCH)]},
        {"input": [ASKED],
         "output": [
            {"type": "function_call", "call_id": "c1", "name": "peek", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "a red wall"},
            {"type": "message", "role": "assistant",
             "content": [{"type": "output_text", "text": "Done.", "annotations": []}]}],
         "tools": [{"type": "function", **PEEK}, {"type": "function", **FETCH}]},
        {"prompt": [ASKED], "completion": calling(function())["messages"][1:],
         "tools": list(SCHEMAS)},
    ],
)  # fmt: skip
def test_a_call_without_arguments_is_read_in_every_form(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    found = read(tmp_path, lines(record))
    assert told(found) == LOOKED
    assert found.trajectories[0].tools == SCHEMAS
    written = WRITERS["messages"](found.trajectories[0])
    assert READERS["messages"](written, "x", "x", None) == found.trajectories[0]


def test_turns_of_calls_and_a_system_column_beside_them_are_read(tmp_path: Path) -> None:
    record = {
        "conversations": [
            {"from": "human", "value": "Look around, then stop."},
            {"from": "function_call", "value": '{"name": "peek", "arguments": {}}'},
            {"from": "observation", "value": "a red wall"},
            {"from": "gpt", "value": "Done."},
        ],
        "system": "Be brief.",
        "tools": json.dumps([PEEK, FETCH]),
    }
    found = read(tmp_path, lines(record))
    assert told(found) == ["Be brief.", ("Look around, then stop.", "", CALLED), *LOOKED[2:]]
    assert found.trajectories[0].tools == SCHEMAS
    assert found.notes.renamed == {
        "role observation to tool": 1,
        "role function_call to assistant": 1,
        "system to a system message": 1,
        "tools to function schemas": 2,
    }
    for format in ("messages", "eto", "agentgym", "atif"):
        written = WRITERS[format](found.trajectories[0])
        assert READERS[format](written, "x", "x", None) == found.trajectories[0]


@pytest.mark.parametrize(
    "record",
    [
        thinking("<think>\nI should look first.\n</think>\n\nlook"),
        thinking("<thinking>I should look first.</thinking> look"),
        thinking("<Thought>I should look first.</Thought>\nlook"),
        thinking("I should look first.\n</think>\nlook"),
        thinking("<think>I should look first.</think>\nAction: look"),
        thinking("<think>I should look first.\nAction: look"),
        thinking("<think></think>Thought: I should look first.\nAction: look"),
        thinking("THOUGHT: I should look first.\n ACTION: look"),
        thinking("**Thought:** I should look first.\n\n**Action:** look"),
        thinking("Thought 1: I should look first.\nAction 1\uff1alook"),
        thinking("look", reasoning="I should look first."),
        thinking("look", reasoning_content="I should look first."),
        thinking("look", thinking="I should look first."),
        thinking("look", reasoning="I should look first.", thinking="I should look first."),
        thinking("Action: look", reasoning="I should look first."),
        thinking("<think>I should look first.</think>look", reasoning="I should look first."),
        {"messages": [ASKED, {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "I should look first.", "signature": "x"},
            {"type": "text", "text": "look"}]}]},
        {"input": "Look around, then stop.", "output": [
            {"type": "reasoning", "summary": [
                {"type": "summary_text", "text": "I should look first."}]},
            {"role": "assistant", "content": "look"}]},
        {"prompt": "Look around, then stop.",
         "completion": "<think>I should look first.</think>look"},
        {"conversations": [{"from": "human", "value": "Look around, then stop."},
                           {"from": "gpt", "value": "look",
                            "reasoning_content": "I should look first."}]},
    ],
)  # fmt: skip
def test_thoughts_and_actions_are_separated_however_they_are_marked(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    assert told(read(tmp_path, lines(record))) == [
        "Look around, then stop.", ("", "I should look first.", "look"), "",
    ]  # fmt: skip


def test_a_thought_before_a_call_loses_its_tags_and_label(tmp_path: Path) -> None:
    for content in ("<think>a</think>\n\nb", "<think>a</think>Thought: b", "Thought: a\n\nb"):
        assert told(read(tmp_path, lines(calling(function(), content=content))))[1] == (
            "", "a\n\nb", CALLED,
        )  # fmt: skip


def test_upper_case_labels_of_agentgym_are_not_part_of_the_action(tmp_path: Path) -> None:
    said: list[tuple[str, bool | None, str]] = [
        ("human", None, "You live in a toy house. Reply with THOUGHT and ACTION."),
        ("gpt", False, "OK. I will do that."),
        ("human", None, "You see a shelf 1 and a cup 1. Your task is to: move the cup."),
        ("gpt", True, "THOUGHT: The cup is on the shelf.\n ACTION: go to shelf 1"),
        ("human", None, "On the shelf 1 is a cup 1."),
        ("gpt", True, "ACTION: take cup 1 from shelf 1"),
    ]
    turns = [{"from": who, "loss": loss, "value": text} for who, loss, text in said]
    record = {"id": "house_0", "conversations": turns}
    found = read(tmp_path, lines(record))
    assert told(found) == [
        said[0][2],
        (said[2][2], "The cup is on the shelf.", "go to shelf 1"),
        (said[4][2], "", "take cup 1 from shelf 1"),
        "",
    ]
    assert WRITERS["agentgym"](found.trajectories[0])["conversations"] == turns


DIALOGUE = [{"from": "human", "value": "You see a cup 1."}, {"from": "gpt", "value": "take cup 1"}]
HOUSE = "You live in a toy house. Always answer in one line."


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": DIALOGUE, "system": HOUSE},
        {"conversations": DIALOGUE, "system_prompt": HOUSE, "system": ""},
        {"conversations": [{"from": "system", "value": HOUSE}, *DIALOGUE], "system": HOUSE},
        {"conversations": DIALOGUE, "system": [{"type": "text", "text": HOUSE}]},
        {"messages": DIALOGUE, "system": HOUSE},
        {"messages": [{"role": "developer", "content": HOUSE}, *DIALOGUE], "system": None},
    ],
)
def test_a_system_message_comes_first_in_the_instruction(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    found = read(tmp_path, lines(record))
    assert told(found) == [HOUSE, ("You see a cup 1.", "", "take cup 1"), ""]
    assert found.notes.num_systems == 1


def test_a_system_column_before_the_reply_ok_is_part_of_the_instruction(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "Play."}, {"from": "gpt", "value": "OK"}, *DIALOGUE,
    ]  # fmt: skip
    found = read(tmp_path, lines({"conversations": turns, "system": HOUSE}))
    assert told(found) == [f"{HOUSE}\n\nPlay.", ("You see a cup 1.", "", "take cup 1"), ""]


def test_a_column_named_system_that_is_no_text_stays_in_the_metadata(tmp_path: Path) -> None:
    record = {"conversations": DIALOGUE, "system": {"os": "linux"}}
    (trajectory,) = read(tmp_path, lines(record)).trajectories
    assert trajectory.metadata["system"] == {"os": "linux"}
    assert READERS["eto"](WRITERS["eto"](trajectory), "x", "x", None) == trajectory


def test_observations_of_an_environment_are_read_as_the_users_or_a_tools(tmp_path: Path) -> None:
    record = thinking("look")
    record["messages"] += [{"role": "environment", "content": "a red wall"}, DONE]
    found = read(tmp_path, lines(record))
    assert told(found) == [
        "Look around, then stop.", ("", "", "look"), ("a red wall", "", "Done."), "",
    ]  # fmt: skip
    assert found.notes.renamed == {"role environment to user": 1}
    assert [m["role"] for m in WRITERS["openai"](found.trajectories[0])["messages"]][2] == "user"


@pytest.mark.parametrize(
    ("flags", "learnt"),
    [
        ([{"loss": False}, {"loss": True}, {}], [1]),
        ([{"loss": False}, {"loss": None}, {}], [1, 2]),
        ([{"weight": 0}, {"weight": 1}, {}], [1, 2]),
        ([{"loss": True, "weight": 0}, {"loss": True}, {}], [1]),
    ],
)
def test_turns_that_carry_no_loss_are_context(
    tmp_path: Path, flags: list[dict[str, Any]], learnt: list[int]
) -> None:
    said = [ASKED, *({"role": "assistant", "content": str(i)} | f for i, f in enumerate(flags))]
    for record in (
        {"messages": said},
        {"conversations": [{"from": m.pop("role"), "value": m.pop("content")} | m
                           for m in json.loads(json.dumps(said))]},
    ):  # fmt: skip
        (trajectory,) = read(tmp_path, lines(record)).trajectories
        assert [step.action for step in trajectory.steps] == list(map(str, learnt))


def test_results_of_tools_and_texts_beside_them_are_all_observed(tmp_path: Path) -> None:
    result = {"type": "tool_result", "tool_use_id": "c1", "content": "a red wall"}
    record = calling(function())
    for role in ("user", "tool", "observation"):
        content = [result, {"type": "text", "text": "Hurry."}]
        record["messages"][2] = {"role": role, "content": content}
        found = read(tmp_path, lines(record))
        assert told(found)[2] == ("a red wall\n\nHurry.", "", "Done.")


def test_calls_of_a_query_and_its_answers_are_one_step(tmp_path: Path) -> None:
    answers = [{"name": "fetch", "arguments": {"what": "cup"}}]
    record = {"id": 3, "query": "Get a cup.", "answers": json.dumps(answers),
              "tools": json.dumps([PEEK, FETCH])}  # fmt: skip
    found = read(tmp_path, lines(record))
    call = '{"name":"fetch","arguments":{"what":"cup"}}'
    assert told(found) == ["Get a cup.", ("", "", call), ""]
    assert (found.trajectories[0].id, found.trajectories[0].tools) == ("3", SCHEMAS)


def test_null_and_empty_fields_of_atif_steps_are_dropped(tmp_path: Path) -> None:
    call = {"tool_call_id": "c", "function_name": "peek", "arguments": "", "cost": None}
    record = {
        "schema_version": "ATIF-v1.7",
        "agent": {"name": "a", "version": "1", "mood": ""},
        "steps": [
            {"step_id": 1, "source": "user", "message": "Look.", "tags": []},
            {"step_id": 2, "source": "agent", "message": "", "tool_calls": [call], "cost": None,
             "observation": {"results": [{"content": "a red wall", "score": None}]}},
        ],
    }  # fmt: skip
    found = read(tmp_path, lines(record))
    assert told(found) == ["Look.", ("", "", CALLED), "a red wall"]
    dropped = {what: number for what, number in found.notes.dropped.items() if number}
    assert dropped == {"empty mood": 1, "empty tags": 1, "empty cost": 2, "empty score": 1}


def test_trajectories_of_one_id_are_numbered(tmp_path: Path) -> None:
    said = {"id": "a", "conversations": DIALOGUE}
    found = read(tmp_path, lines(said, said, said | {"id": "a#2"}, said))
    assert [t.id for t in found.trajectories] == ["a", "a#2", "a#2#2", "a#3"]
    assert found.notes.renamed == {"repeated ids to id#2, id#3, ...": 3}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (calling(function(), mood="good"), "messages[1].mood: unknown field; expected only role, "),
        (calling(function(mood=1)), "messages[1].tool_calls[0].mood: unknown field; expected only"),
        (calling(function("[1]")), "messages[1].tool_calls[0].function.arguments: expected an obj"),
        (calling(function("{'a': 1}")), "messages[1].tool_calls[0].function.arguments: not JSON ("),
        (calling(function(" {")), "messages[1].tool_calls[0].function.arguments: not JSON (EOF"),
        (calling(function("[" * 10**5)), "messages[1].tool_calls[0].function.arguments: not JSON"),
        (calling(function(), function_call={"name": "f"}), "messages[1].tool_calls: expected o"),
        (thinking("<think>I look."), "steps[0]: a thought without an action; expected text or a "),
        (thinking("<think>I look.</think>"), "steps[0]: a thought without an action; expected te"),
        (thinking("", reasoning="I look."), "messages[1]: expected text or a tool call, got neit"),
        ({"messages": "[{"}, "messages: expected a list, or its JSON text: not JSON (EOF while"),
        ({"messages": [{"role": "\x1b[2J", "content": ""}]}, "messages[0].role: expected one of "),
        ({"conversations": [{"from": "function_call", "value": "peek()"}]},
         "conversations[0].value: expected a call as JSON text: not JSON"),
        ({"conversations": [{"from": "function_call", "value": '{"arguments": {}}'}]},
         "conversations[0].value: function: missing; expected at least function"),
        ({"messages": [ASKED | {"reasoning": "x"}, DONE]}, "messages[0]: expected calls and reaso"),
        ({"messages": [ASKED, DONE], "tools": "peek"}, "tools: expected a list of function schem"),
        ({"query": "a", "answers": '[{"name": "a"}, {"name": "b"}]', "tools": "[]"},
         "messages[1].tool_calls: expected one call, since a step is one action, got 2 in"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "a preference pair; expected an expert"),
        ({"chosen": [ASKED, DONE], "rejected": [ASKED, DONE]}, "a preference pair; expected"),
        ({"instruction": "a", "input": "", "output": "b"}, "an instruction and its answer (Alpaca"),
        ({"system": "a", "chat": "USER: b"}, "a dialogue as a single text (glaive); expected a"),
        ({"data": [{"messages": []}]}, "records inside the field 'data'; expected a file with"),
        ({"text": "a"}, "plain text without roles; expected a list of messages"),
        (ASKED, "a single message; expected a record with all messages"),
        ({"input": [{"type": "web_search_call"}], "output": []}, "items[0]: expected a message or"),
    ],
)  # fmt: skip
def test_records_that_cannot_be_read_are_named(
    tmp_path: Path, record: dict[str, Any], reason: str
) -> None:
    assert error_of(tmp_path, lines(record)).startswith(f"1: {reason}")


def test_notes_of_a_skipped_record_do_not_count(tmp_path: Path) -> None:
    bad = calling(function(), mood="good", refusal=None)
    found = read(tmp_path, lines(bad, calling(function())), skip_invalid=True)
    assert found.notes.dropped == {"ids of calls": 2}
    with pytest.raises(FormatError):
        READERS["messages"](bad, "x", "x", Notes())


def test_a_file_name_that_is_not_utf_8_still_gives_ids(tmp_path: Path) -> None:
    path = Path(str(tmp_path), "caf\udce9.jsonl")
    path.write_text(lines({"conversations": DIALOGUE}))
    assert read_foreign(path).trajectories[0].id == "caf\ufffd/1"


TAGGED_TOOLS = [{"type": "function", "function": {"name": "peek", "parameters": {}}}]
TAGGED_CALL = '<tool_call>\n{"name": "peek", "arguments": {"at": "wall"}}\n</tool_call>'


def tagged(said: str, **columns: Any) -> dict[str, Any]:
    """A record as Hermes writes it: calls and their results between tags."""
    return {
        "conversations": [
            {"from": "human", "value": "Look."},
            {"from": "gpt", "value": said},
            {"from": "tool", "value": "<tool_response>\na red wall\n</tool_response>"},
            {"from": "gpt", "value": "Done."},
        ],
        **columns,
    }


def test_calls_between_tags_are_calls_where_the_record_has_tools() -> None:
    found = read_sharegpt(tagged(f"I look. {TAGGED_CALL}", tools=TAGGED_TOOLS), "a", "t")
    first, second = found.steps
    assert first.action == '{"name":"peek","arguments":{"at":"wall"}}'
    assert first.thought == "I look."
    assert second.observation == "a red wall"


@pytest.mark.parametrize(
    ("said", "tools"),
    [
        (TAGGED_CALL, []),
        (f"{TAGGED_CALL} and more", TAGGED_TOOLS),
        ("<tool_call>{'name': 'peek'}</tool_call>", TAGGED_TOOLS),
        ("<tool_call>", TAGGED_TOOLS),
    ],
    ids=["no tools", "text behind it", "no JSON", "not closed"],
)
def test_other_tags_in_a_text_stay_text(said: str, tools: list[Any]) -> None:
    found = read_sharegpt(tagged(said, tools=tools), "a", "t")
    assert found.steps[0].action == said


def test_tags_are_read_in_linear_time() -> None:
    for said in ("<tool_call>" * 50_000, f"{TAGGED_CALL} " * 20_000 + "x", "<" * 200_000):
        read_sharegpt(tagged(said, tools=TAGGED_TOOLS), "a", "t")
    record = tagged("Look.", tools=TAGGED_TOOLS)
    record["conversations"][2]["value"] = "<tool_response>" + " \n" * 50_000 + "x"
    read_sharegpt(record, "a", "t")


@pytest.mark.parametrize("name", ["system", "system_prompt", "system_message", "systemPrompt"])
def test_a_system_message_in_a_column_of_any_name_comes_first(name: str) -> None:
    record = tagged("Look.") | {name: "Be brief."}
    assert read_sharegpt(record, "a", "t").instruction == "Be brief."
