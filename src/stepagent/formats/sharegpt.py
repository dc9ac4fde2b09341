r"""ShareGPT dialogues as ETO and AgentGym write them: `{"conversations": [{"from", "value"}]}`.

ETO (also IPR): `id`, the instruction, the reply "OK", the first observation, then actions and
observations in turn; `reward` from 0 to 1 is the score. Actions are "Thought: ...\nAction: ...".
ETO's gold dialogues of ALFWorld have no reply: what comes first is all instruction.

AgentGym: `item_id`, and each turn has `loss`, which alone decides what is learnt: true for actions,
false for the reply "Ok.", null for observations. Actions are "Thought:\n...\n\nAction:\n...".

Turns may be calls and answers of tools, with `tools` and `system` beside them, as LLaMA-Factory has
them. Other fields, such as `game_file` or `source`, become metadata. The task is ALFWorld's
`task_type`, or the id without its number (`webshop_12`).
"""

import re
from decimal import Decimal
from typing import Annotated

from pydantic import Field, JsonValue

from stepagent.formats.chat import SYSTEM_COLUMNS, Message, read_turns, system_turn, turn_list
from stepagent.formats.dialogue import Dialogue, Header, read_dialogue, write_dialogue
from stepagent.formats.records import KEY, Extras, Notes, checked, id_of
from stepagent.formats.tools import read_tools
from stepagent.formats.turns import Style, Turn
from stepagent.types import Record, Trajectory

ETO = Style(name="eto", reply="OK", has_calls=False)
AGENTGYM = Style(
    name="agentgym",
    react="Thought:\n{thought}\n\nAction:\n{action}",
    reply="Ok.",
    has_calls=False,
    marks_context=True,
)
RESERVED = {"conversations", "id", "item_id", "reward", "tools", *SYSTEM_COLUMNS, KEY}
_OK = re.compile(r"ok(ay)?[.!]?", re.IGNORECASE)
_FIELDS = {"role": "from", "content": "value"}


class Said(Message):
    """One turn."""

    role: str = Field(alias="from")
    content: JsonValue = Field(alias="value")


class ShareGPTRecord(Record, extra="allow"):
    """One line of a file; fields that are not named here become metadata."""

    conversations: list[Said]
    id: JsonValue = None
    item_id: JsonValue = None
    tools: JsonValue = None
    reward: Annotated[float, Field(ge=0, le=1)] | None = None
    stepagent: Extras = Extras()


def read_sharegpt(
    record: dict[str, JsonValue], name: str, task: str, notes: Notes | None = None
) -> Trajectory:
    """The trajectory of a record; name and task are those of a record that has none itself."""
    notes = Notes() if notes is None else notes
    if "conversations" in record:
        said = turn_list(record["conversations"], "conversations", _FIELDS)
        record = record | {"conversations": said}
    found = checked(record, ShareGPTRecord, notes)
    columns = dict(found.model_extra or {})
    flagged = any(turn.loss is not None for turn in found.conversations)
    turns = read_turns(found.conversations, "conversations", notes, has_tools=bool(found.tools))
    turns = [*system_turn(columns, turns, notes), *turns]
    if not flagged:
        turns = _with_reply(turns)
    own = id_of(found.item_id, "item_id") or id_of(found.id, "id") or _text(columns, "game")
    header = Header(
        id=own or name,
        task=_task(own, columns) or task,
        tools=read_tools(found.tools, notes),
        score=None if found.reward is None else _shifted(found.reward, 2),
        columns=columns,
    )
    return read_dialogue(turns, AGENTGYM if flagged else ETO, header, found.stepagent)


def _with_reply(turns: list[Turn]) -> list[Turn]:
    """The turns; an "OK" to the instruction, which something else follows, is not to be learnt."""
    at = next((i for i, turn in enumerate(turns) if turn.role == "agent"), 0)
    spoken = [turn.role for turn in turns[:at] if turn.role not in ("system", "developer")]
    followed = at + 1 < len(turns) and turns[at + 1].role != "agent"
    if len(spoken) > 1 or at == 0 or not followed or not _OK.fullmatch(turns[at].text.strip()):
        return turns
    return [*turns[:at], turns[at].model_copy(update={"learnt": False}), *turns[at + 1 :]]


def write_eto(trajectory: Trajectory) -> dict[str, JsonValue]:
    """The record as ETO writes it; importing it gives the same trajectory."""
    dialogue = write_dialogue(trajectory, ETO, RESERVED)
    reward = None if trajectory.score is None else _shifted(trajectory.score, -2)
    exact = reward is None or _shifted(reward, 2) == trajectory.score
    return {
        "id": trajectory.id,
        "conversations": [_said(turn) for turn in dialogue.turns],
        **({} if reward is None else {"reward": reward}),
        **dialogue.columns,
        **_extras(trajectory, dialogue, score=None if exact else trajectory.score).field(),
    }


def write_agentgym(trajectory: Trajectory) -> dict[str, JsonValue]:
    """The record as AgentGym writes it; importing it gives the same trajectory."""
    dialogue = write_dialogue(trajectory, AGENTGYM, RESERVED)
    return {
        "item_id": trajectory.id,
        "conversations": [
            _said(turn) | {"loss": turn.learnt if turn.role == "agent" else None}
            for turn in dialogue.turns
        ],
        **dialogue.columns,
        **_extras(trajectory, dialogue, score=trajectory.score).field(),
    }


def _said(turn: Turn) -> dict[str, JsonValue]:
    speaker = {"agent": "gpt", "user": "human"}.get(turn.role, turn.role)
    return {"from": speaker, "value": turn.text}


def _extras(trajectory: Trajectory, dialogue: Dialogue, *, score: float | None) -> Extras:
    told = _task(trajectory.id, dialogue.columns) == trajectory.task
    return dialogue.extras.model_copy(
        update={
            "score": score,
            "task": None if told else trajectory.task,
            "tools": list(trajectory.tools),
        }
    )


def _task(own_id: str | None, columns: dict[str, JsonValue]) -> str | None:
    numbered = re.fullmatch(r"([A-Za-z][\w-]*)_\d+", own_id or "")
    return _text(columns, "task_type") or (numbered[1] if numbered else None)


def _text(columns: dict[str, JsonValue], key: str) -> str | None:
    value = columns.get(key)
    return value if isinstance(value, str) else None


def _shifted(number: float, places: int) -> float:
    """The number times a power of ten, with the digits that it is written with."""
    return float(Decimal(repr(number)).scaleb(places))
