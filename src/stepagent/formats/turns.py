"""Turns of a dialogue, and the conversion of an agent's turn to and from thought and action."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, JsonValue

from stepagent.formats.records import StepTexts
from stepagent.rendering.actions import Call, call_of, split_react, split_thinking, without_label
from stepagent.types import Record


class Turn(Record):
    """One message of a dialogue."""

    role: str
    """`agent`; all others are observations: `system`, `user`, `tool` or, in ATIF, `environment`."""
    text: str = ""
    reasoning: str = ""
    """The agent's thought, if the format has a separate field for it."""
    call: Call | None = None
    learnt: bool = True
    """False for an agent's turn that is only context and carries no loss."""

    @property
    def is_step(self) -> bool:
        """Whether this is an action that carries loss."""
        return self.role == "agent" and self.learnt

    def observed(self) -> str:
        """The turn as part of an observation."""
        call = self.call.action() if self.call else ""
        return "\n".join(filter(None, [self.reasoning, self.text, call]))


class KeptTurn(Turn):
    """A turn as it is kept in the metadata."""

    chars: int | None = None
    """Length of its text, if the text itself is the next part of the trajectory's text there."""


class Kept(Record):
    """What the metadata keeps of an imported record."""

    observations: dict[str, list[KeptTurn]] = Field(default_factory=dict)
    """Turns before each action, by its index; those after the last action have the next index."""
    actions: dict[str, Turn] = Field(default_factory=dict)
    """Turns of actions, by index."""
    header: dict[str, JsonValue] = Field(default_factory=dict)
    """Fields of the record that only its format has."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a format writes a trajectory as turns."""

    name: str
    """Key of the metadata that keeps how an imported record differs from this style."""
    react: str = "Thought: {thought}\nAction: {action}"
    """Template of a text with a thought and an action."""
    reply: str | None = None
    """The agent's reply to the instruction, before the first observation; carries no loss."""
    instruction_role: str | None = None
    """Role of an instruction in its own turn; None, with no reply either, shares the first turn."""
    observation_role: str = "user"
    has_calls: bool = True
    reasoning: Literal["none", "read", "written"] = "none"
    """Whether a separate field for thoughts is read only, also written, or does not exist."""
    marks_context: bool = False
    """Whether the format can mark an agent's turn as carrying no loss."""


def read_action(turn: Turn) -> StepTexts:
    """The thought and the action of an agent's turn; the action is empty if there is none."""
    if turn.call:
        thinking, text = split_thinking(turn.text)
        thought = _thoughts(turn.reasoning, thinking or "", without_label(text))
        return StepTexts(thought=thought, action=turn.call.action())
    texts = split_react(turn.text)
    return StepTexts(thought=_thoughts(turn.reasoning, texts.thought), action=texts.action)


def _thoughts(*thoughts: str) -> str:
    """Joins the thoughts without repetition: some servers send one both as a field and in text."""
    return "\n\n".join(filter(None, dict.fromkeys(thoughts)))


def write_action(thought: str, action: str, style: Style) -> Turn:
    """The agent's turn with this thought and action, in the style of a format."""
    call = call_of(action) if style.has_calls else None
    if style.reasoning == "written":
        return Turn(role="agent", text="" if call else action, reasoning=thought, call=call)
    if call:
        return Turn(role="agent", text=thought, call=call)
    text = style.react.format(thought=thought, action=action) if thought else action
    return Turn(role="agent", text=text)
