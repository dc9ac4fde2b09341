"""The nouns of the project: what an expert did and what the agent practised.

Everything here is frozen and validated, because it is read from files that somebody else wrote.
Scores are on the benchmark's own scale, 0 to 100; higher is better.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

NonEmpty = Annotated[str, StringConstraints(strip_whitespace=False, min_length=1, pattern=r"\S")]


class Record(BaseModel):
    """A value that is read from and written to one line of JSON; unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Step(Record):
    """What was seen and what was then done."""

    observation: str
    action: NonEmpty
    thought: str = ""
    """What was thought before the action (ReAct); empty if nothing was said."""
    reward: float | None = None
    """Environment reward of the action, if the environment gave one."""


class Trajectory(Record):
    """One episode; the history at step t is `instruction`, `steps[:t]`, the observation of t."""

    id: NonEmpty
    """Unique within a file; the item that was solved, e.g. `boil/12`."""
    task: NonEmpty
    instruction: NonEmpty
    steps: Annotated[tuple[Step, ...], Field(min_length=1)]
    tools: tuple[dict[str, JsonValue], ...] = ()
    """Function schemas (`{"type": "function", "function": ...}`), if actions may call tools; such
    an action is the call as compact JSON, `{"name":...,"arguments":{...}}`."""
    final_observation: str = ""
    score: Annotated[float, Field(ge=0, le=100)] | None = None
    success: bool | None = None
    truncated: bool = False
    """True if a limit ended the episode, not the task."""
    metadata: dict[str, JsonValue] = {}


class Fragment(Record):
    """An expert trajectory cut before one action: the state, and what the expert did in it."""

    trajectory_id: NonEmpty
    step_index: Annotated[int, Field(ge=0)]
    instruction: NonEmpty
    history: tuple[Step, ...]
    observation: str
    expert_action: NonEmpty


class AgentAction(Record):
    """An action that the agent practised in an expert state, as text and as sampled tokens."""

    text: str
    thought: str = ""
    token_ids: Annotated[tuple[int, ...], Field(min_length=1)]
    logprob: Annotated[float, Field(le=0)]
    """Log-probability of `token_ids` under the policy that sampled them, at temperature 1."""
    reward: float | None = None
    """Step reward that reflection gave the action."""


class PracticedStep(Record):
    """One expert state, the expert's action in it and the agent's own attempts."""

    trajectory_id: NonEmpty
    step_index: Annotated[int, Field(ge=0)]
    expert_action: NonEmpty
    expert_reward: float | None = None
    agent_actions: Annotated[tuple[AgentAction, ...], Field(min_length=1)]
