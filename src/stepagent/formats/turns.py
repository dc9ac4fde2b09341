"""Turns of a dialogue, and what an agent's turn says: a thought and an action."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, JsonValue

from stepagent.actions import Call, call_of, split_react, split_thinking, without_label
from stepagent.formats.records import StepTexts
from stepagent.types import Record


class Turn(Record):
    """One message of a dialogue."""

    role: str
    """`agent`; any other is observed: `system`, `user`, `tool` or, in ATIF, `environment`."""
    text: str = ""
    reasoning: str = ""
    """What an agent thought, where the format has a field of its own for it."""
    call: Call | None = None
    learnt: bool = True
    """False for an agent's turn that is context only."""

    @property
    def is_step(self) -> bool:
        """Whether this is an action to be learnt."""
        return self.role == "agent" and self.learnt

    def observed(self) -> str:
        """The turn as part of an observation."""
        call = self.call.action() if self.call else ""
        return "\n".join(filter(None, [self.reasoning, self.text, call]))


class KeptTurn(Turn):
    """A turn in the metadata."""

    chars: int | None = None
    """Length of its text, if that is the next part of what the trajectory has there."""


class Kept(Record):
    """What the metadata keeps of an imported record."""

    observations: dict[str, list[KeptTurn]] = Field(default_factory=dict)
    """Turns before the action of each index; the final observation comes after the last one."""
    actions: dict[str, Turn] = Field(default_factory=dict)
    header: dict[str, JsonValue] = Field(default_factory=dict)
    """Fields of the record that only its format knows."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a format writes a trajectory as turns."""

    name: str
    """Under which the metadata keeps what an imported record has differently."""
    react: str = "Thought: {thought}\nAction: {action}"
    """A thought and an action as one text."""
    reply: str | None = None
    """What the agent says, not to be learnt, between instruction and first observation."""
    instruction_role: str | None = None
    """Role of an instruction in a turn of its own; without it or a reply, one turn has both."""
    observation_role: str = "user"
    has_calls: bool = True
    reasoning: Literal["none", "read", "written"] = "none"
    """Whether the format has a field of its own for thoughts, and whether they are put there."""
    marks_context: bool = False
    """Whether the format can say of an agent's turn that it is not to be learnt."""


def read_action(turn: Turn) -> StepTexts:
    """The thought and the action of an agent's turn; the action is empty if there is none."""
    if turn.call:
        thinking, text = split_thinking(turn.text)
        thought = _thoughts(turn.reasoning, thinking or "", without_label(text))
        return StepTexts(thought=thought, action=turn.call.action())
    said = split_react(turn.text)
    return StepTexts(thought=_thoughts(turn.reasoning, said.thought), action=said.action)


def _thoughts(*thoughts: str) -> str:
    """All of them, once each: some servers send a thought both as a field and in the text."""
    return "\n\n".join(filter(None, dict.fromkeys(thoughts)))


def write_action(thought: str, action: str, style: Style) -> Turn:
    """The agent's turn that says them in the style of a format."""
    call = call_of(action) if style.has_calls else None
    if style.reasoning == "written":
        return Turn(role="agent", text="" if call else action, reasoning=thought, call=call)
    if call:
        return Turn(role="agent", text=thought, call=call)
    text = style.react.format(thought=thought, action=action) if thought else action
    return Turn(role="agent", text=text)
