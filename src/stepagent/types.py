"""The project's records: an expert's trajectory, and the states in which the agent practised.

All are frozen and validated, because they are read from files that somebody else wrote. Scores run
from 0 to 100; higher is better.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

NonEmpty = Annotated[str, StringConstraints(strip_whitespace=False, min_length=1, pattern=r"\S")]


class Record(BaseModel):
    """Base of everything stored as one line of JSON; unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Step(Record):
    """An observation and the action taken after it."""

    observation: str
    action: NonEmpty
    thought: str = ""
    """Reasoning before the action (ReAct); empty if there is none."""
    reward: float | None = None
    """Reward of the action from the environment; None if unknown."""


class Trajectory(Record):
    """One episode; the context at step t is `instruction`, `steps[:t]`, the observation of t."""

    id: NonEmpty
    """Unique within a file; usually the item that was played, e.g. `boil/12`."""
    task: NonEmpty
    """Name of the task or environment, e.g. `scienceworld`."""
    instruction: NonEmpty
    steps: Annotated[tuple[Step, ...], Field(min_length=1)]
    tools: tuple[dict[str, JsonValue], ...] = ()
    """Function schemas (`{"type": "function", "function": ...}`) of the tools that actions may
    call; a call is written as compact JSON, `{"name":...,"arguments":{...}}`."""
    final_observation: str = ""
    """The observation after the last action."""
    score: Annotated[float, Field(ge=0, le=100)] | None = None
    success: bool | None = None
    truncated: bool = False
    """Whether a limit, such as the step limit, ended the episode, and not the task itself."""
    metadata: dict[str, JsonValue] = {}


class AgentAction(Record):
    """An action that the agent sampled in a state of an expert trajectory."""

    text: str
    thought: str = ""
    token_ids: Annotated[tuple[int, ...], Field(min_length=1)]
    """The sampled tokens of thought and action."""
    logprob: Annotated[float, Field(le=0)]
    """Log-probability of `token_ids` under the policy that sampled them, at temperature 1."""
    reward: float | None = None
    """Step reward of the action, assigned by reflection; None before."""


class PracticedStep(Record):
    """A practised step: a state of an expert trajectory, the expert's action and the agent's."""

    trajectory_id: NonEmpty
    step_index: Annotated[int, Field(ge=0)]
    """Index of the state's step in the trajectory, from 0."""
    expert_action: NonEmpty
    expert_reward: float | None = None
    """Step reward of the expert's action, assigned by reflection; None before."""
    agent_actions: Annotated[tuple[AgentAction, ...], Field(min_length=1)]
