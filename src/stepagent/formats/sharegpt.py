r"""ShareGPT dialogues as ETO and AgentGym write them: `{"conversations": [{"from", "value"}]}`.

ETO (also IPR): `id`, the instruction, the reply "OK", the first observation, then actions and
observations in turn; `reward` from 0 to 1 is the score. Actions are "Thought: ...\nAction: ...".
ETO's gold dialogues of ALFWorld have no reply: what comes first is all instruction.

AgentGym: `item_id`, and each turn has `loss`, which alone decides what is learnt: true for actions,
false for the reply "Ok.", null for observations. Actions are "Thought:\n...\n\nAction:\n...".

Other fields, such as `game_file` or `source`, become metadata. The task is ALFWorld's `task_type`,
or the id without its number (`webshop_12`).
"""

import re
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from stepagent.formats.dialogue import Dialogue, Header, read_dialogue, write_dialogue
from stepagent.formats.records import KEY, Extras, FormatError, checked, id_of
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
RESERVED = {"conversations", "id", "item_id", "reward", KEY}


class Said(Record):
    """One turn."""

    speaker: Literal["human", "gpt", "system"] = Field(alias="from")
    value: str
    loss: bool | None = None


class ShareGPTRecord(Record, extra="allow"):
    """One line of a file; fields that are not named here become metadata."""

    conversations: list[Said]
    id: JsonValue = None
    item_id: JsonValue = None
    reward: Annotated[float, Field(ge=0, le=1)] | None = None
    stepagent: Extras = Extras()


def read_sharegpt(record: dict[str, JsonValue], name: str, task: str) -> Trajectory:
    """The trajectory of a record; name and task are those of a record that has none itself."""
    found = checked(record, ShareGPTRecord)
    columns = found.model_extra or {}
    has_loss = any("loss" in said.model_fields_set for said in found.conversations)
    turns = [
        _turn(said, index, found, has_loss=has_loss)
        for index, said in enumerate(found.conversations)
    ]
    own = id_of(found.item_id, "item_id") or id_of(found.id, "id") or _text(columns, "game")
    score = None if found.reward is None else _shifted(found.reward, 2)
    header = Header(id=own or name, task=_task(own, columns) or task, score=score, columns=columns)
    return read_dialogue(turns, AGENTGYM if has_loss else ETO, header, found.stepagent)


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


def _turn(said: Said, index: int, record: ShareGPTRecord, *, has_loss: bool) -> Turn:
    if said.speaker != "gpt":
        return Turn(role="user" if said.speaker == "human" else said.speaker, text=said.value)
    if not said.value:
        raise FormatError(f"conversations[{index}].value: expected text, got ''")
    # Without flags, only a reply that something else follows before the next action is no action.
    is_reply = index == 1 and len(record.conversations) > 2
    is_reply = is_reply and record.conversations[2].speaker != "gpt"
    is_ok = re.fullmatch(r"ok(ay)?[.!]?", said.value.strip(), re.IGNORECASE) is not None
    learnt = said.loss is True if has_loss else not (is_reply and is_ok)
    return Turn(role="agent", text=said.value, learnt=learnt)


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
