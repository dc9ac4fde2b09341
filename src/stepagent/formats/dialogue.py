"""Converts dialogues to trajectories and back, for all formats that are lists of messages.

In the opening, before the first action, the last text is the first observation and the others are
the instruction; a single text is all instruction. Later, the texts between two actions form one
observation. An agent's turn that carries no loss is not a step: its text becomes part of the
observation, so that the history keeps it. Only an "OK" to the instruction is left out.

A trajectory does not record how its texts were divided into turns. If a dialogue differs from the
one that its trajectory would be written as, the import keeps the turns in the metadata, under the
name of the style, with lengths in place of texts that the trajectory contains. Kept turns that no
longer fit the trajectory, because it was edited, are ignored.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue, ValidationError

from stepagent.console.printable import shown
from stepagent.formats.records import Extras, FormatError, StepTexts, checked_trajectory
from stepagent.formats.turns import Kept, KeptTurn, Style, Turn, read_action, write_action
from stepagent.types import Step, Trajectory

BLANK_LINE = "\n\n"
"""Separates joined texts, and instruction from observation, as in rendering."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """The fields of a record beside its turns."""

    id: str
    task: str
    tools: Sequence[dict[str, JsonValue]] = ()
    score: float | None = None
    columns: dict[str, JsonValue] = field(default_factory=dict)
    """Fields that the format does not define; they become metadata."""
    kept: dict[str, JsonValue] = field(default_factory=dict)
    """Fields that only this format has; they are kept in the metadata for the export."""


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """A trajectory as turns and fields that a format can write."""

    turns: list[Turn]
    kept: dict[str, JsonValue]
    """Fields that only this format has, as the import kept them."""
    columns: dict[str, JsonValue]
    """Metadata that becomes fields of the record."""
    extras: Extras
    """What the format has no place for."""


def read_dialogue(
    turns: Sequence[Turn], style: Style, header: Header, extras: Extras
) -> Trajectory:
    """The trajectory of a dialogue; raises `FormatError` if there is none in it."""
    observed, agent = _grouped(turns)
    instruction, first = _cut_opening(observed[0], extras.instruction_chars)
    observations = [first, *map(_joined, observed[1:])]
    texts = [read_action(turn) for turn in agent]
    for index, given in extras.steps.items():
        if not index.isdecimal() or int(index) >= len(texts):
            raise FormatError(
                f"stepagent.steps: expected indices below {len(texts)}, got {shown(index)}"
            )
        texts[int(index)] = given
    for step, own in enumerate(texts):
        if own.thought and not own.action and str(step) not in extras.steps:
            raise FormatError(
                f"steps[{step}]: a thought without an action; expected text or a call after it"
            )
    rewards = extras.rewards or [None] * len(texts)
    if len(rewards) != len(texts):
        raise FormatError(f"stepagent.rewards: expected {len(texts)} numbers, got {len(rewards)}")
    trajectory = checked_trajectory(
        id=header.id,
        task=extras.task or header.task,
        instruction=instruction,
        steps=tuple(
            {"observation": seen, "thought": own.thought, "action": own.action, "reward": reward}
            for seen, own, reward in zip(observations[:-1], texts, rewards, strict=True)
        ),
        tools=tuple(header.tools or extras.tools),
        final_observation=observations[-1],
        score=header.score if extras.score is None else extras.score,
        success=extras.success,
        truncated=extras.truncated,
    )
    kept = _keep(trajectory, observed, agent, style, header.kept)
    metadata = header.columns | ({style.name: kept} if kept else {}) | extras.metadata
    return trajectory.model_copy(update={"metadata": metadata})


def write_dialogue(trajectory: Trajectory, style: Style, reserved: set[str]) -> Dialogue:
    """The dialogue of a trajectory; metadata in `reserved` cannot become fields of a record."""
    kept = _kept_in(trajectory, style)
    agent = [
        _restored_action(kept.actions.get(str(index)), step, style)
        for index, step in enumerate(trajectory.steps)
    ]
    observed = [
        _restored(kept.observations.get(str(index)), trajectory, index, agent, style)
        for index in range(len(trajectory.steps) + 1)
    ]
    again = _keep(trajectory, observed, agent, style, kept.header)
    steps = {
        str(index): texts
        for index, (step, turn) in enumerate(zip(trajectory.steps, agent, strict=True))
        if read_action(turn) != (texts := StepTexts(thought=step.thought, action=step.action))
    }
    opening = (trajectory.instruction, trajectory.steps[0].observation)
    metadata = trajectory.metadata
    rewards = [step.reward for step in trajectory.steps]
    extras = Extras(
        score=trajectory.score,
        success=trajectory.success,
        truncated=trajectory.truncated,
        rewards=rewards if any(reward is not None for reward in rewards) else [],
        instruction_chars=None if _cut_opening(observed[0]) == opening else len(opening[0]),
        steps=steps,
        metadata={
            key: value
            for key, value in metadata.items()
            if (key in reserved if key != style.name else value != again or not value)
        },
    )
    turns = [*observed[0]]
    for action, seen in zip(agent, observed[1:], strict=True):
        turns += [action, *seen]
    columns = {k: v for k, v in metadata.items() if k not in reserved and k != style.name}
    return Dialogue(turns=turns, kept=kept.header, columns=columns, extras=extras)


def _grouped(turns: Sequence[Turn]) -> tuple[list[list[Turn]], list[Turn]]:
    """The turns observed before each action and after the last, and the turns of the actions."""
    observed: list[list[Turn]] = [[]]
    agent: list[Turn] = []
    for turn in turns:
        if turn.is_step:
            agent.append(turn)
            observed.append([])
        else:
            observed[-1].append(turn)
    if not agent:
        raise FormatError("no agent turn that carries loss; expected at least one")
    return observed, agent


def _is_reply(turns: Sequence[Turn], index: int) -> bool:
    """Whether a turn is only the agent's "OK" to the instruction."""
    turn = turns[index]
    if index == 0 or turn.role != "agent" or turn.call or turn.reasoning:
        return False
    return all(t.role in ("system", "developer") for t in turns[: index - 1]) and _is_ok(turn.text)


def _is_ok(text: str) -> bool:
    return re.match(r"\s*ok(ay)?\b", text, re.IGNORECASE) is not None


def _texts(turns: Sequence[Turn], *, opening: bool) -> list[str]:
    """What each turn adds to the joined text, which may be nothing."""
    return [_added(turns, index, opening=opening) for index in range(len(turns))]


def _added(turns: Sequence[Turn], index: int, *, opening: bool) -> str:
    return "" if opening and _is_reply(turns, index) else turns[index].observed()


def _joined(turns: Sequence[Turn], *, opening: bool = False) -> str:
    return _join(_texts(turns, opening=opening))


def _join(texts: Sequence[str]) -> str:
    return BLANK_LINE.join(filter(None, texts))


def _cut_opening(turns: Sequence[Turn], instruction_chars: int | None = None) -> tuple[str, str]:
    """Instruction and first observation."""
    whole = _joined(turns, opening=True)
    if not whole:
        raise FormatError("no text before the first action; expected an instruction")
    if instruction_chars is not None:
        end = instruction_chars
        rest = whole[end:]
        if not 0 < end <= len(whole) or (rest and not rest.startswith(BLANK_LINE)):
            raise FormatError(
                f"stepagent.instruction_chars: expected the end of a text of the opening, got {end}"
            )
        return whole[:end], rest.removeprefix(BLANK_LINE)
    *before, last = filter(None, _texts(turns, opening=True))
    instruction = BLANK_LINE.join(before)
    return (instruction, last) if instruction.strip() else (whole, "")


def _text_at(trajectory: Trajectory, index: int) -> str:
    """The joined text of the turns before an action, or after the last one."""
    if index == len(trajectory.steps):
        return trajectory.final_observation
    observation = trajectory.steps[index].observation
    return observation if index else _join([trajectory.instruction, observation])


def _written(trajectory: Trajectory, index: int, agent: Sequence[Turn], style: Style) -> list[Turn]:
    """The turns before an action, or after the last one, as the style writes them."""
    if index:
        role = "tool" if agent[index - 1].call else style.observation_role
        text = _text_at(trajectory, index)
        return [Turn(role=role, text=text)] if text or index < len(agent) else []
    instruction = Turn(role="user", text=trajectory.instruction)
    observation = Turn(role="user", text=trajectory.steps[0].observation)
    # A reply comes before an observation; without one it is needed only so that an "OK" as the
    # first action is not taken for a reply.
    if style.reply is not None and (observation.text or _is_ok(agent[0].text)):
        return [instruction, Turn(role="agent", text=style.reply, learnt=False), observation]
    if style.instruction_role and observation.text:
        return [instruction.model_copy(update={"role": style.instruction_role}), observation]
    return [Turn(role="user", text=_text_at(trajectory, 0))]


def _keep(
    trajectory: Trajectory,
    observed: Sequence[Sequence[Turn]],
    agent: Sequence[Turn],
    style: Style,
    header: dict[str, JsonValue],
) -> dict[str, JsonValue]:
    """What the metadata must keep so that these turns and fields can be restored."""
    kept = Kept(
        observations={
            str(index): _without_texts(turns, opening=index == 0)
            for index, turns in enumerate(observed)
            if turns != _written(trajectory, index, agent, style)
        },
        actions={
            str(index): turn
            for index, (step, turn) in enumerate(zip(trajectory.steps, agent, strict=True))
            if turn != write_action(step.thought, step.action, style)
        },
        header=header,
    )
    dumped: dict[str, JsonValue] = kept.model_dump(mode="json", exclude_defaults=True)
    return dumped


def _without_texts(turns: Sequence[Turn], *, opening: bool) -> list[KeptTurn]:
    return [
        KeptTurn(role=turn.role, learnt=turn.learnt, chars=len(turn.text))
        if turn.text and turn.text == text
        else KeptTurn(**turn.model_dump())
        for turn, text in zip(turns, _texts(turns, opening=opening), strict=True)
    ]


def _kept_in(trajectory: Trajectory, style: Style) -> Kept:
    """What the import kept; nothing if the metadata has something else under the style's name."""
    try:
        return Kept.model_validate(trajectory.metadata.get(style.name, {}))
    except ValidationError:
        return Kept()


def _restored(
    kept: Sequence[KeptTurn] | None,
    trajectory: Trajectory,
    index: int,
    agent: Sequence[Turn],
    style: Style,
) -> list[Turn]:
    """The kept turns with their texts if they fit trajectory and style, else the style's own."""
    whole, turns, at = _text_at(trajectory, index), list[Turn](), 0
    for turn in kept or ():
        text = turn.text if turn.chars is None else whole[at : at + turn.chars]
        turns.append(Turn(text=text, **turn.model_dump(exclude={"chars", "text"})))
        added = _added(turns, len(turns) - 1, opening=index == 0)
        at += len(added) + len(BLANK_LINE) * bool(added)
    # If the format cannot mark context, an agent's turn among the observations would carry loss.
    allowed = style.marks_context or style.reply is not None
    if (
        kept is None
        or any(turn.is_step or (turn.role == "agent" and not allowed) for turn in turns)
        or _joined(turns, opening=index == 0) != whole
    ):
        return _written(trajectory, index, agent, style)
    return turns


def _restored_action(kept: Turn | None, step: Step, style: Style) -> Turn:
    """The kept turn if it still matches the step, else the style's own."""
    fits = (
        kept
        and (style.reasoning != "none" or not kept.reasoning)
        and (style.has_calls or not kept.call)
    )
    if kept and fits and read_action(kept) == StepTexts(thought=step.thought, action=step.action):
        return kept
    return write_action(step.thought, step.action, style)
