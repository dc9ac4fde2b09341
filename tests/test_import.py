"""Files of other formats: how they are recognised and read, and why records are skipped."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from stepagent.formats.import_export import Imported, read_foreign, write_foreign
from stepagent.trajectories import TrajectoryError
from test_formats import AGENTGYM, ATIF, ETO, GOLD, OPENAI, TRL

QUESTION = {"role": "user", "content": "Who?"}
ANSWER = {"role": "assistant", "content": "Thought: He.\nAction: finish[him]"}
GOAL = {"instruction_text": "a kettle, and price lower than 40.00 dollars", "asin": "B01"}
PAGES: list[dict[str, Any]] = [
    {"page": "index", "url": "/s", "goal": GOAL},
    {"page": "index", "url": "/s", "goal": GOAL},
    {"page": "search_results", "url": "/r/1", "goal": GOAL,
     "content": {"keywords": ["red", "kettle"], "search_result_asins": ["B01", "B02"], "page": 1}},
    {"page": "search_results", "url": "/r/2", "goal": GOAL,
     "content": {"keywords": ["red", "kettle"], "search_result_asins": ["B03"], "page": 2}},
    {"page": "item_page", "url": "/i", "goal": GOAL,
     "content": {"keywords": "['red', 'kettle']", "page": "2", "asin": "B03", "options": {}}},
    {"page": "item_page", "url": "/i/red", "goal": GOAL,
     "content": {"keywords": "['red', 'kettle']", "page": "2", "asin": "B03",
                 "options": {"color": "red"}}},
    {"page": "item_sub_page", "url": "/i/2/Features/x", "goal": GOAL,
     "content": {"keywords": "['red', 'kettle']", "page": "2", "asin": "B03",
                 "options": {"color": "red"}}},
    {"page": "item_page", "url": "/i/red", "goal": GOAL,
     "content": {"keywords": "['red', 'kettle']", "page": "2", "asin": "B03",
                 "options": {"color": "red"}}},
    {"page": "done", "url": "/d", "goal": GOAL, "reward": 0.5, "reward_info": {"r_type": 1.0},
     "content": {"asin": "B03", "options": {"color": "red"}, "price": 8.0}},
]  # fmt: skip
KNOWAGENT = {
    "input": "Answer by Action Knowledge.\nQuestion: Who? \n",
    "output": "ActionPath 1: Start\nThought 1: I search.\nAction 1: Search[him]\n"
    "Observation 1: He is.\nAction 2: Finish[him]\nObservation 2: Answer is CORRECT",
}
KNOWAGENT_GAME = {
    "input": "A room.\nYour task is to: look.",
    "output": "> Think: I look.\n> ActionPath: Start\n> look\nYou see a kettle 1.\n> stop",
}


def lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def read(folder: Path, text: str, name: str = "expert.jsonl", **options: Any) -> Imported:
    (folder / name).write_text(text)
    return read_foreign(folder / name, **options)


def error_of(folder: Path, text: str, **options: Any) -> str:
    with pytest.raises(TrajectoryError) as caught:
        read(folder, text, **options)
    message = str(caught.value)
    assert "\n" not in message and message.isprintable()
    return message.removeprefix(f"{folder}{os.sep}expert.jsonl:").strip()


@pytest.mark.parametrize(
    ("format", "record"),
    [("messages", TRL), ("messages", OPENAI), ("eto", ETO), ("eto", GOLD), ("agentgym", AGENTGYM),
     ("atif", ATIF), ("webshop", {"session": 7, "steps": PAGES}), ("knowagent", KNOWAGENT)],
)  # fmt: skip
@pytest.mark.parametrize("layout", ["lines", "list", "object", "gzip"])
def test_formats_and_layouts_are_recognised(
    tmp_path: Path, format: str, record: dict[str, Any], layout: str
) -> None:
    texts = {"list": json.dumps([record], indent=2), "object": json.dumps(record, indent=2)}
    data = ("\ufeff" + texts.get(layout, "\n" + lines(record))).encode()
    path = tmp_path / ("expert.json.gz" if layout == "gzip" else "expert.json")
    path.write_bytes(gzip.compress(data) if layout == "gzip" else data)
    found = read_foreign(path)
    assert (found.format, len(found.trajectories), found.rejected) == (format, 1, {})
    assert found.places == ("line" if layout in ("lines", "gzip") else "record")


def test_instruction_observation_thought_and_action_are_separated(tmp_path: Path) -> None:
    def told(record: dict[str, Any]) -> list[Any]:
        (t,) = read(tmp_path, lines(record)).trajectories
        return [t.id, t.task, t.instruction, *((s.observation, s.thought, s.action)
                for s in t.steps), t.final_observation, t.score]  # fmt: skip

    call = '{"name":"search","arguments":{"query":"kettle"}}'
    assert told(TRL) == [
        "expert/1", "expert", "You shop.", ("A kettle, please.", "I look for it.", call),
        ("1 kettle\n\nCheap?", "It is.", "Yes."), "", None,
    ]  # fmt: skip
    assert told(OPENAI)[2:5] == [
        "You shop.\n\nA kettle, please.\n\nWhich one?",
        ("Any.", "", call),
        ("1 kettle", "", "Here it is."),
    ]
    assert told(ETO) == [
        "webshop_7", "webshop", "You are web shopping.",
        ("WebShop [SEP] Search", "I search.", "search[kettle]"),
        ("Observation: 1 kettle", "", "click[1]"), "", 57.0,
    ]  # fmt: skip
    assert told(GOLD) == [
        GOLD["game"], "pick_and_place_simple", GOLD["conversations"][0]["value"],
        ("", "", "go to shelf 1"), "You see a kettle 1.", None,
    ]  # fmt: skip
    assert told(AGENTGYM) == [
        "alfworld_12", "alfworld",
        "Interact with a household.\n\nYou are in a room.\n\nThought:\nHm.\n\nAction:\nlook",
        ("A shelf.", "Go.", "go to shelf 1"), "You see a kettle.", None,
    ]  # fmt: skip
    assert told(ATIF)[3:] == [
        ("A kettle, please.", "Where?\n\nI look.", call),
        ("1 kettle\n\nGood.\n\n...", "Done.", "Bought."), "", None,
    ]  # fmt: skip
    assert told(KNOWAGENT)[3:] == [
        ("", "ActionPath 1: Start\nThought 1: I search.", "Search[him]"),
        ("He is.", "", "Finish[him]"), "Answer is CORRECT", None,
    ]  # fmt: skip
    assert told(KNOWAGENT_GAME)[3:] == [
        ("", "Think: I look.\nActionPath: Start", "look"),
        ("You see a kettle 1.", "", "stop"), "", None,
    ]  # fmt: skip


def test_steps_that_were_copied_as_context_are_dropped(tmp_path: Path) -> None:
    copied = {"step_id": 2, "source": "agent", "message": "Old.", "is_copied_context": True}
    said = {"source": "agent", "message": "New."}
    steps = [{"step_id": 1, "source": "user", "message": "Go."}, copied, {"step_id": 3, **said}]
    (trajectory,) = read(tmp_path, lines(ATIF | {"steps": steps})).trajectories
    assert [step.action for step in trajectory.steps] == ["New."]


def test_a_changed_trajectory_is_not_exported_with_its_old_turns(tmp_path: Path) -> None:
    (trajectory,) = read(tmp_path, lines(TRL)).trajectories
    steps = tuple(s.model_copy(update={"action": "stop"}) for s in trajectory.steps)
    changed = trajectory.model_copy(update={"instruction": "New.", "steps": steps})
    write_foreign(tmp_path / "out.jsonl", [changed], "messages")
    text = (tmp_path / "out.jsonl").read_text()
    assert "You shop" not in text.split('"stepagent"')[0]
    assert read_foreign(tmp_path / "out.jsonl").trajectories == (changed,)


def test_the_actions_of_a_webshop_session_are_inferred(tmp_path: Path) -> None:
    (trajectory,) = read(tmp_path, lines(*PAGES), task="webshop").trajectories
    assert [step.action for step in trajectory.steps] == [
        "search[red kettle]", "click[next >]", "click[b03]", "click[red]", "click[features]",
        "click[< prev]", "click[buy now]",
    ]  # fmt: skip
    assert (trajectory.id, trajectory.task, trajectory.score) == ("expert", "webshop", 50.0)
    assert [step.reward for step in trajectory.steps] == [None] * 6 + [0.5]


def agent_says(**message: Any) -> dict[str, Any]:
    return {"messages": [QUESTION, {"role": "assistant", **message}]}


def step_of(**step: Any) -> dict[str, Any]:
    return ATIF | {"steps": [{"step_id": 1, "source": "user", "message": "Go."}, step]}


CALL = {"type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"a\n": 1}, "unknown format with the fields a\\n; expected one of"),
        ({"id": "a", "task": "b", "instruction": "c", "steps": []}, "steps: expected at le"),
        ({"messages": []}, "no agent turn that carries loss; expected at least one"),
        ({"messages": [QUESTION]}, "no agent turn that carries loss; expected at least one"),
        ({"messages": [ANSWER]}, "no text before the first action; expected an instruction"),
        ({"messages": None}, "messages: expected a list, got null"),
        ({"messages": [{"content": "a"}]}, "messages[0].role: missing; expected at least role"),
        (agent_says(audio={"id": "a"}), "messages[1].audio: unknown field; expected only role, co"),
        (agent_says(), "messages[1]: expected text or a tool call, got neither"),
        (agent_says(content=" "), "steps[0].action: expected non-empty text, got ' '"),
        (agent_says(content="a", weight=0), "no agent turn that carries loss"),
        (
            agent_says(content=[{"type": "image_url", "image_url": {}}]),
            "messages[1].content[0]: expected a text part, got 'image_url'",
        ),
        (
            agent_says(tool_calls=[CALL, CALL]),
            "messages[1].tool_calls: expected one call, since a step is one action, got 2 in",
        ),
        (
            agent_says(tool_calls=[CALL | {"function": {"name": "f", "arguments": "{"}}]),
            "messages[1].tool_calls[0].function.arguments: not JSON (EOF while parsing an object",
        ),
        (agent_says(content="a") | {"tools": "[1]"}, "tools: expected a list of function schemas"),
        (agent_says(content="a") | {"id": [1]}, "id: expected text or a whole number, got a list"),
        (
            agent_says(content="a") | {"stepagent": {"rewards": [1, 2]}},
            "stepagent.rewards: expected 1 numbers, got 2",
        ),
        (
            agent_says(content="a") | {"stepagent": {"instruction_chars": 2}},
            "stepagent.instruction_chars: expected the end of a text of the opening, got 2",
        ),
        (ETO | {"reward": 57}, "reward: expected a number of at most 1, got 57"),
        (ETO | {"conversations": [{"from": "gpt4", "value": ""}]}, "conversations[0].from: exp"),
        (ETO | {"conversations": [{"value": ""}]}, "conversations[0].from: missing; expected at"),
        (AGENTGYM | {"conversations": None}, "conversations: expected a list, got null"),
        (ATIF | {"schema_version": "ATIF-v2.0"}, "schema_version: expected"),
        (step_of(step_id=3, source="agent", message="a"), "steps[1].step_id: expected 2, got 3"),
        (
            step_of(step_id=2, source="agent", message="", tool_calls=[]),
            "steps[1]: expected a message or a tool call, got neither",
        ),
        (
            {"session": "a", "steps": [PAGES[0], PAGES[4]]},
            "steps[1]: no single action leads to this page (item_page) from the one before (index)",
        ),
        (
            {"session": "a", "steps": [PAGES[5], PAGES[6] | {"url": "/x"}]},
            "steps[1]: no single action leads to this page (item_sub_page) from",
        ),
        ({"session": "a", "steps": PAGES[:2]}, "steps: expected at least two different pages"),
        (KNOWAGENT | {"output": "He."}, "output: no action; expected lines `Action 1:"),
    ],
)  # fmt: skip
def test_an_invalid_record_says_why(tmp_path: Path, record: dict[str, Any], reason: str) -> None:
    assert error_of(tmp_path, lines(record)).startswith(f"1: {reason}")
    listed = error_of(tmp_path, json.dumps([record]))
    assert listed.startswith(f"record 1: {reason}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "1: empty; expected records in one of the formats messages, openai, eto,"),
        ("[]", "1: empty; expected records"),
        ("nope\n", "1: not JSON (expected ident at column 2); expected one JSON object per line"),
        ("[1]", "record 1: expected an object, got 1"),
        ("[{]", "not JSON (key must be a string at line 1 column 3); expected a list of objects"),
        ('[{"a": 1, "a": 2}]', "field 'a' appears twice; expected each field once"),
        ('[{"a": 1e999}]', "contains 1e999; expected finite numbers"),
        ('[{"a": NaN}]', "not JSON (expected value at line 1 column 8); expected a list"),
        (lines(TRL, 3), "2: expected a JSON object, got 3"),
    ],
)
def test_an_invalid_file_says_why(tmp_path: Path, text: str, message: str) -> None:
    assert error_of(tmp_path, text).startswith(message)


def test_skipped_records_are_listed_by_reason(tmp_path: Path) -> None:
    text = lines({"messages": []}, TRL, {"messages": []}) + "nope\n"
    found = read(tmp_path, text, skip_invalid=True)
    assert [t.id for t in found.trajectories] == ["expert/2"]
    assert sorted(found.rejected.values()) == [[1, 3], [4]]
    message = error_of(tmp_path, lines({"messages": []}) + "nope\n", skip_invalid=True)
    assert message.startswith("1: none of its 2 records is valid; no agent turn")
    assert error_of(tmp_path, lines({}), skip_invalid=True).startswith("1: unknown format")
