"""ATIF, Harbor's Agent Trajectory Interchange Format; reads versions 1.0 to 1.8, writes 1.7.

`{"schema_version", "agent", "steps": [{"step_id", "source", "message", ...}]}`. Steps of the system
and the user are observations; an agent's step holds the action (`message` or one of `tool_calls`),
the thought (`reasoning_content`) and the result (`observation`). Steps copied as context are
dropped, as the format demands; a scripted step (`llm_call_count` 0) is context and carries no loss.

Kept as metadata: `agent`, `session_id`, `notes`, and the fields of `extra`. Lost: timestamps, model
names and metrics of steps, `final_metrics`, subagents and continuations, `extra` below the top
level, and ids of calls, which are renumbered. The format has no reward, so ours goes into `extra`.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from stepagent.console.printable import shown
from stepagent.formats.content import call_of_fields, text_of
from stepagent.formats.dialogue import Dialogue, Header, read_dialogue, write_dialogue
from stepagent.formats.records import KEY, Dumped, Extras, FormatError, Notes, checked
from stepagent.formats.turns import Style, Turn
from stepagent.types import NonEmpty, Record, Trajectory

ATIF = Style(
    name="atif",
    instruction_role="system",
    observation_role="environment",
    reasoning="written",
    marks_context=True,
)
RESERVED = {KEY}
UNKNOWN_AGENT: dict[str, JsonValue] = {"name": "expert", "version": "unknown"}
"""The format requires an agent, which our trajectories do not name."""


class AtifCall(Dumped):
    """A tool call."""

    tool_call_id: str
    function_name: NonEmpty
    arguments: JsonValue = None
    extra: JsonValue = None


class Result(Dumped):
    """One result of a step."""

    source_call_id: str | None = None
    content: JsonValue = None
    subagent_trajectory_ref: JsonValue = None
    extra: JsonValue = None


class Observation(Dumped):
    """All results of a step."""

    results: list[Result]


class AtifStep(Dumped):
    """A message of the system, the user or the agent, and its results."""

    step_id: int
    source: Literal["system", "user", "agent"]
    message: JsonValue
    timestamp: JsonValue = None
    model_name: JsonValue = None
    reasoning_effort: JsonValue = None
    reasoning_content: str | None = None
    tool_calls: list[AtifCall] | None = None
    observation: Observation | None = None
    metrics: JsonValue = None
    llm_call_count: Annotated[int, Field(ge=0)] | None = None
    is_copied_context: bool | None = None
    extra: JsonValue = None


class Agent(Dumped):
    """The agent that acted."""

    name: str
    version: str
    model_name: str | None = None
    tool_definitions: list[dict[str, JsonValue]] | None = None
    extra: dict[str, JsonValue] | None = None


class AtifRecord(Dumped):
    """A whole trajectory."""

    schema_version: Annotated[str, Field(pattern=r"^ATIF-v1\.[0-8]$")]
    agent: Agent
    steps: list[AtifStep]
    session_id: str | None = None
    trajectory_id: str | None = None
    notes: str | None = None
    final_metrics: JsonValue = None
    continued_trajectory_ref: JsonValue = None
    subagent_trajectories: JsonValue = None
    extra: dict[str, JsonValue] | None = None


class OwnFields(Record):
    """The fields that only ATIF has, as they are kept in the metadata."""

    agent: Agent = Agent.model_validate(UNKNOWN_AGENT)
    session_id: str | None = None
    notes: str | None = None


def read_atif(
    record: dict[str, JsonValue], name: str, task: str, notes: Notes | None = None
) -> Trajectory:
    """Reads a record; `name` is its id and `task` its task if it has none itself."""
    notes = Notes() if notes is None else notes
    atif = checked(record, AtifRecord, notes)
    columns = dict(atif.extra or {})
    extras = checked(columns.pop(KEY, {}), Extras)
    agent = atif.agent.model_copy(update={"tool_definitions": None})
    kept = OwnFields(agent=agent, session_id=atif.session_id, notes=atif.notes)
    header = Header(
        id=atif.trajectory_id or atif.session_id or name,
        task=task,
        tools=atif.agent.tool_definitions or (),
        columns=columns,
        kept=kept.model_dump(mode="json", exclude_defaults=True),
    )
    turns = _turns(atif.steps, notes)
    notes.num_systems += bool(turns) and turns[0].role == "system"
    for field in ("final_metrics", "continued_trajectory_ref", "subagent_trajectories"):
        notes.dropped[field] += bool(getattr(atif, field))
    return read_dialogue(turns, ATIF, header, extras)


def write_atif(trajectory: Trajectory) -> dict[str, JsonValue]:
    """The trajectory as an ATIF-v1.7 record; importing it gives the same trajectory."""
    dialogue = write_dialogue(trajectory, ATIF, RESERVED)
    kept = checked(dialogue.kept, OwnFields)
    agent = kept.agent.model_copy(update={"tool_definitions": list(trajectory.tools) or None})
    extras = dialogue.extras.model_copy(update={"task": trajectory.task})
    record: dict[str, JsonValue] = {
        "schema_version": "ATIF-v1.7",
        "session_id": kept.session_id,
        "trajectory_id": trajectory.id,
        "agent": agent.model_dump(mode="json", exclude_none=True),
        "steps": _steps(dialogue),
        "notes": kept.notes,
        "extra": dialogue.columns | extras.field(),
    }
    return {key: value for key, value in record.items() if value is not None}


def _turns(steps: Sequence[AtifStep], notes: Notes) -> list[Turn]:
    turns: list[Turn] = []
    for index, step in enumerate(steps):
        place = f"steps[{index}]"
        if step.step_id != index + 1:
            raise FormatError(f"{place}.step_id: expected {index + 1}, got {shown(step.step_id)}")
        if step.is_copied_context:
            notes.dropped["steps copied as context"] += 1
            continue
        for field in ("timestamp", "model_name", "reasoning_effort", "metrics", "extra"):
            notes.dropped[f"{field} of steps"] += bool(getattr(step, field))
        if step.source == "agent":
            turns.append(_agent_turn(step, place))
        else:
            if step.tool_calls or step.reasoning_content:
                raise FormatError(f"{place}: expected calls and reasoning in agent steps only")
            turns.append(Turn(role=step.source, text=text_of(step.message, f"{place}.message")))
        calls = {call.tool_call_id for call in step.tool_calls or ()}
        for number, result in enumerate(step.observation.results if step.observation else ()):
            at = f"{place}.observation.results[{number}]"
            source = result.source_call_id
            if source is not None and calls and source not in calls:
                raise FormatError(
                    f"{at}.source_call_id: expected a call of this step, got {shown(source)}"
                )
            role = "tool" if source in calls else "environment"
            turns.append(Turn(role=role, text=text_of(result.content, f"{at}.content")))
    return turns


def _agent_turn(step: AtifStep, place: str) -> Turn:
    text = text_of(step.message, f"{place}.message")
    calls = step.tool_calls or []
    if len(calls) > 1:
        raise FormatError(
            f"{place}.tool_calls: expected one call, since a step is one action, "
            f"got {len(calls)} in parallel"
        )
    if not text and not calls:
        raise FormatError(f"{place}: expected a message or a tool call, got neither")
    call = None
    for written in calls:
        at = f"{place}.tool_calls[0].arguments"
        call = call_of_fields(written.function_name, written.arguments, at)
    return Turn(
        role="agent",
        text=text,
        reasoning=step.reasoning_content or "",
        call=call,
        learnt=step.llm_call_count != 0,
    )


def _steps(dialogue: Dialogue) -> list[JsonValue]:
    steps: list[dict[str, JsonValue]] = []
    results: list[JsonValue] = []
    calls = 0
    for turn in dialogue.turns:
        if turn.role in ("tool", "environment"):
            # Results belong to the step before them, which created this list.
            if not results:
                steps[-1]["observation"] = {"results": results}
            source: dict[str, JsonValue] = (
                {"source_call_id": f"call_{calls}"} if turn.role == "tool" else {}
            )
            results.append(source | {"content": turn.text})
            continue
        results = []
        step: dict[str, JsonValue] = {
            "step_id": len(steps) + 1,
            "source": turn.role,
            "message": turn.text,
        }
        if turn.reasoning:
            step["reasoning_content"] = turn.reasoning
        if turn.call:
            calls += 1
            step["tool_calls"] = [
                {
                    "tool_call_id": f"call_{calls}",
                    "function_name": turn.call.name,
                    "arguments": turn.call.arguments,
                }
            ]
        if not turn.learnt:
            step["llm_call_count"] = 0
        steps.append(step)
    return [*steps]
