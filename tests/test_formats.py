"""Round trips: trajectories through every format, and other projects' records through ours."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepagent.formats.import_export import READERS, WRITERS
from stepagent.formats.tools import function_schema
from stepagent.types import Step, Trajectory
from test_trajectories import filled, finite, json_values, texts

EXACT = ["messages", "eto", "agentgym", "atif"]

CALL = '{"name":"search","arguments":{"query":"a kettle","page":1}}'
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "search", "parameters": {"type": "object", "properties": {}}},
}

# Texts that an importer could mistake for something else.
tricky = st.sampled_from(
    ["OK", "Ok.", "Thought: a\nAction: b", "Action: b", "a\nAction:", "Thought:\na\n\nAction:\nb",
     "THOUGHT: a\n ACTION: b", "**Action:** b", "<think>a</think>", "<think>a</think>b", "<think>a",
     "a</think>\nb", CALL, CALL + " ",
     '{"name":1}', '{"name":"a","arguments":{"x":1,"x":2}}', "a\n\nb", "\n\n"]
)  # fmt: skip
any_texts = texts | tricky
any_filled = (filled | tricky).filter(lambda text: any(not c.isspace() for c in text))
fields = st.sampled_from(["messages", "eto", "atif", "id", "extra", "reward", "stepagent", "game",
                          "system", "system_prompt", "tools", "functions"])  # fmt: skip
trajectories = st.builds(
    Trajectory,
    id=filled | st.sampled_from(["webshop_3", "boil/1"]),
    task=filled | st.just("webshop"),
    instruction=any_filled,
    steps=st.lists(
        st.builds(
            Step,
            observation=any_texts,
            thought=any_texts,
            action=any_filled,
            reward=st.none() | finite,
        ),
        min_size=1,
        max_size=4,
    ).map(tuple),
    tools=st.lists(
        st.sampled_from([TOOL, {"name": "f", "parameters": {}}, TOOL["function"]])
        | st.dictionaries(texts, json_values, max_size=2),
        max_size=2,
    ).map(tuple),
    final_observation=any_texts,
    score=st.none() | st.floats(0, 100),
    success=st.none() | st.booleans(),
    truncated=st.booleans(),
    metadata=st.dictionaries(texts | fields, json_values, max_size=3),
)


def there_and_back(trajectory: Trajectory, format: str) -> Trajectory:
    record = json.loads(json.dumps(WRITERS[format](trajectory)))
    return READERS[format](record, "unnamed", "unknown")


@pytest.mark.parametrize("format", EXACT)
@given(trajectories)
def test_an_exported_trajectory_is_imported_as_it_was(format: str, trajectory: Trajectory) -> None:
    assert there_and_back(trajectory, format) == trajectory


@given(trajectories)
def test_openai_keeps_every_message_and_nothing_else(trajectory: Trajectory) -> None:
    record = WRITERS["openai"](trajectory)
    assert set(record) <= {"messages", "tools"}
    again = there_and_back(trajectory, "openai")
    assert WRITERS["openai"](again) == record
    assert again.tools == tuple(map(function_schema, trajectory.tools))
    assert again.final_observation == trajectory.final_observation
    assert (again.id, again.task, again.score) == ("unnamed", "unknown", None)


def test_openai_keeps_steps_whose_texts_are_not_ambiguous() -> None:
    trajectory = Trajectory(
        id="a", task="b", instruction="Buy a kettle.", tools=(TOOL,), final_observation="Bought.",
        steps=(
            Step(observation="", thought="First look.", action=CALL, reward=0.5),
            Step(observation="Two kettles.", thought="The first.", action="click[1]"),
            Step(observation="A kettle.", action="click[buy now]"),
        ),
    )  # fmt: skip
    again = there_and_back(trajectory, "openai")
    unrewarded = tuple(step.model_copy(update={"reward": None}) for step in trajectory.steps)
    assert (again.instruction, again.steps) == (trajectory.instruction, unrewarded)


@given(trajectories, st.sampled_from(EXACT), st.sampled_from(EXACT))
def test_formats_can_be_chained(trajectory: Trajectory, first: str, second: str) -> None:
    assert there_and_back(there_and_back(trajectory, first), second) == trajectory


TRL = {
    "messages": [
        {"role": "system", "content": "You shop."},
        {"role": "user", "content": "A kettle, please."},
        {
            "role": "assistant",
            "content": "I look for it.",
            "tool_calls": [
                {
                    "type": "function",
                    "function": {"name": "search", "arguments": {"query": "kettle"}},
                }
            ],
        },
        {"role": "tool", "name": "search", "content": "1 kettle"},
        {"role": "user", "content": "Cheap?"},
        {"role": "assistant", "reasoning_content": "It is.", "content": "Yes."},
    ],
    "tools": [TOOL],
    "source": "hand",
}
OPENAI = {
    "messages": [
        {"role": "system", "content": "You shop."},
        {"role": "user", "content": "A kettle, please."},
        {"role": "assistant", "content": "Which one?", "weight": 0},
        {"role": "user", "content": "Any."},
        {
            "role": "assistant",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "search", "arguments": '{"query":"kettle"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "1 kettle"},
        {"role": "assistant", "content": "Here it is."},
    ],
    "tools": [TOOL],
    "parallel_tool_calls": False,
}
ETO = {
    "id": "webshop_7",
    "conversations": [
        {"from": "human", "value": "You are web shopping."},
        {"from": "gpt", "value": "OK"},
        {"from": "human", "value": "WebShop [SEP] Search"},
        {"from": "gpt", "value": "Thought: I search.\nAction: search[kettle]"},
        {"from": "human", "value": "Observation: 1 kettle"},
        {"from": "gpt", "value": "Action: click[1]"},
    ],
    "reward": 0.57,
    "source": "human",
}
GOLD = {
    "game": "json_2.1.1/train/pick_and_place_simple-Kettle/trial_1",
    "task_type": "pick_and_place_simple",
    "conversations": [
        {"from": "human", "value": "You are in a room.\n\nYour task is to: find a kettle."},
        {"from": "gpt", "value": "go to shelf 1"},
        {"from": "human", "value": "You see a kettle 1."},
    ],
}
AGENTGYM = {
    "item_id": "alfworld_12",
    "conversations": [
        {"from": "human", "loss": None, "value": "Interact with a household."},
        {"from": "gpt", "loss": False, "value": "OK. I'll follow your instructions."},
        {"from": "human", "loss": None, "value": "You are in a room."},
        {"from": "gpt", "loss": False, "value": "Thought:\nHm.\n\nAction:\nlook"},
        {"from": "human", "loss": None, "value": "A shelf."},
        {"from": "gpt", "loss": True, "value": "Thought:\nGo.\n\nAction:\ngo to shelf 1"},
        {"from": "human", "loss": None, "value": "You see a kettle."},
    ],
}
ATIF = {
    "schema_version": "ATIF-v1.7",
    "session_id": "session-1",
    "trajectory_id": "trajectory-1",
    "agent": {"name": "terminus", "version": "2.0", "model_name": "m", "tool_definitions": [TOOL]},
    "steps": [
        {"step_id": 1, "source": "system", "message": "You shop."},
        {"step_id": 2, "source": "user", "message": "A kettle, please."},
        {
            "step_id": 3,
            "source": "agent",
            "message": "I look.",
            "reasoning_content": "Where?",
            "tool_calls": [
                {
                    "tool_call_id": "call_1",
                    "function_name": "search",
                    "arguments": {"query": "kettle"},
                }
            ],
            "observation": {"results": [{"source_call_id": "call_1", "content": "1 kettle"}]},
        },
        {"step_id": 4, "source": "user", "message": "Good."},
        {"step_id": 5, "source": "agent", "message": "...", "llm_call_count": 0},
        {"step_id": 6, "source": "agent", "message": "Bought.", "reasoning_content": "Done."},
    ],
    "notes": "by hand",
    "extra": {"benchmark": "shop"},
}


@pytest.mark.parametrize(
    ("format", "record"),
    [("messages", TRL), ("openai", OPENAI), ("eto", ETO), ("eto", GOLD), ("agentgym", AGENTGYM),
     ("atif", ATIF)],
)  # fmt: skip
def test_an_imported_record_is_exported_as_it_was(format: str, record: dict[str, Any]) -> None:
    trajectory = READERS[format](record, "unnamed", "unknown")
    written = WRITERS[format](trajectory)
    added = {"messages": {"id", "task"}, "eto": {"id"}}.get(format, set()) - set(record)
    if format == "atif":
        extra: Any = written["extra"]
        assert extra.pop("stepagent") == {"task": "unknown"}
    assert {key: value for key, value in written.items() if key not in added} == record
    reread = Trajectory.model_validate_json(trajectory.model_dump_json())
    assert WRITERS[format](reread) == WRITERS[format](trajectory)
