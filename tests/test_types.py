"""The records refuse invalid values and cannot be changed once made."""

from typing import Any

import pytest
from pydantic import ValidationError

from stepagent.types import AgentAction, PracticedStep, Record, Step, Trajectory

STEP: dict[str, Any] = {"observation": "A pond.", "action": "look"}
AGENT_ACTION: dict[str, Any] = {"text": "wait", "token_ids": (5, 6), "logprob": -1.5}
TRAJECTORY: dict[str, Any] = {
    "id": "boil/1",
    "task": "boil",
    "instruction": "Boil water.",
    "steps": (Step(**STEP),),
}
PRACTICED_STEP: dict[str, Any] = {
    "trajectory_id": "boil/1",
    "step_index": 0,
    "expert_action": "look",
    "agent_actions": (AgentAction(**AGENT_ACTION),),
}
VALID: list[tuple[type[Record], dict[str, Any]]] = [
    (Step, STEP),
    (Trajectory, TRAJECTORY),
    (AgentAction, AGENT_ACTION),
    (PracticedStep, PRACTICED_STEP),
]


@pytest.mark.parametrize(("record_type", "fields"), VALID)
def test_every_record_survives_a_round_trip_through_json(
    record_type: type[Record], fields: dict[str, Any]
) -> None:
    record = record_type(**fields)
    assert record_type.model_validate_json(record.model_dump_json()) == record


@pytest.mark.parametrize(("record_type", "fields"), VALID)
def test_a_record_cannot_be_changed(record_type: type[Record], fields: dict[str, Any]) -> None:
    record = record_type(**fields)
    name, value = next(iter(fields.items()))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(record, name, value)


@pytest.mark.parametrize(("record_type", "fields"), VALID)
def test_an_unknown_field_is_an_error(record_type: type[Record], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="mood"):
        record_type(**fields | {"mood": "hm"})


@pytest.mark.parametrize(
    ("record_type", "fields", "change"),
    [
        (Step, STEP, {"action": ""}),
        (Step, STEP, {"action": " \n\t\u2028"}),
        (Step, STEP, {"action": 3}),
        (Step, STEP, {"reward": float("nan")}),
        (Step, STEP, {"reward": "1"}),
        (Trajectory, TRAJECTORY, {"steps": ()}),
        (Trajectory, TRAJECTORY, {"score": 100.5}),
        (Trajectory, TRAJECTORY, {"score": -0.5}),
        (Trajectory, TRAJECTORY, {"score": True}),
        (Trajectory, TRAJECTORY, {"success": 1}),
        (Trajectory, TRAJECTORY, {"metadata": {"when": float("inf")}}),
        (Trajectory, TRAJECTORY, {"metadata": {"what": object()}}),
        (AgentAction, AGENT_ACTION, {"logprob": 0.1}),
        (AgentAction, AGENT_ACTION, {"logprob": float("-inf")}),
        (AgentAction, AGENT_ACTION, {"token_ids": ()}),
        (PracticedStep, PRACTICED_STEP, {"agent_actions": ()}),
    ],
)
def test_a_value_outside_its_range_is_an_error(
    record_type: type[Record], fields: dict[str, Any], change: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError, match=next(iter(change))):
        record_type(**fields | change)


def test_an_agent_action_may_be_empty_because_a_policy_can_end_its_turn_at_once() -> None:
    assert AgentAction(**AGENT_ACTION | {"text": ""}).text == ""


def test_text_keeps_its_spaces() -> None:
    assert Step(**STEP | {"action": " look "}).action == " look "


def test_two_trajectories_do_not_share_their_metadata() -> None:
    first, second = Trajectory(**TRAJECTORY), Trajectory(**TRAJECTORY)
    first.metadata["seed"] = 1
    assert second.metadata == {}
