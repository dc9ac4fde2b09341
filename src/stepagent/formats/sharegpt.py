r"""ShareGPT dialogues as ETO and AgentGym write them: `{"conversations": [{"from", "value"}]}`.

ETO (also IPR): `id`, the instruction, the reply "OK", the first observation, then alternating
actions and observations; `reward` from 0 to 1 is the score. Actions are
"Thought: ...\nAction: ...". ETO's gold dialogues of ALFWorld have no reply: the first turn is all
instruction.

AgentGym: `item_id`, and each turn has `loss`, which alone decides what carries loss: true for
actions, false for the reply "Ok.", null for observations. Actions are
"Thought:\n...\n\nAction:\n...".

Turns may be tool calls and their results, with `tools` and `system` beside them, as in
LLaMA-Factory. Other fields, such as `game_file` or `source`, become metadata. The task is
ALFWorld's `task_type`, or the id without its number (`webshop_12`).
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


class ShareGPTTurn(Message):
    """One turn: a message with other names for role and content."""

    role: str = Field(alias="from")
    content: JsonValue = Field(alias="value")


class ShareGPTRecord(Record, extra="allow"):
    """One line of a file; fields that are not named here become metadata."""

    conversations: list[ShareGPTTurn]
    id: JsonValue = None
    item_id: JsonValue = None
    tools: JsonValue = None
    reward: Annotated[float, Field(ge=0, le=1)] | None = None
    stepagent: Extras = Extras()


def read_sharegpt(
    record: dict[str, JsonValue], name: str, task: str, notes: Notes | None = None
) -> Trajectory:
    """Reads a record; `name` is its id and `task` its task if it has none itself."""
    notes = Notes() if notes is None else notes
    if "conversations" in record:
        conversations = turn_list(record["conversations"], "conversations", _FIELDS)
        record = record | {"conversations": conversations}
    chat = checked(record, ShareGPTRecord, notes)
    columns = dict(chat.model_extra or {})
    flagged = any(turn.loss is not None for turn in chat.conversations)
    turns = read_turns(chat.conversations, "conversations", notes, has_tools=bool(chat.tools))
    turns = [*system_turn(columns, turns, notes), *turns]
    if not flagged:
        turns = _with_marked_reply(turns)
    own = id_of(chat.item_id, "item_id") or id_of(chat.id, "id") or _text(columns, "game")
    header = Header(
        id=own or name,
        task=_task(own, columns) or task,
        tools=read_tools(chat.tools, notes),
        score=None if chat.reward is None else _shifted(chat.reward, 2),
        columns=columns,
    )
    return read_dialogue(turns, AGENTGYM if flagged else ETO, header, chat.stepagent)


def _with_marked_reply(turns: list[Turn]) -> list[Turn]:
    """Marks an "OK" to the instruction, if an observation follows it, as carrying no loss."""
    at = next((i for i, turn in enumerate(turns) if turn.role == "agent"), 0)
    spoken = [turn.role for turn in turns[:at] if turn.role not in ("system", "developer")]
    followed = at + 1 < len(turns) and turns[at + 1].role != "agent"
    if len(spoken) > 1 or at == 0 or not followed or not _OK.fullmatch(turns[at].text.strip()):
        return turns
    return [*turns[:at], turns[at].model_copy(update={"learnt": False}), *turns[at + 1 :]]


def write_eto(trajectory: Trajectory) -> dict[str, JsonValue]:
    """The trajectory as a record of ETO; importing it gives the same trajectory."""
    dialogue = write_dialogue(trajectory, ETO, RESERVED)
    reward = None if trajectory.score is None else _shifted(trajectory.score, -2)
    exact = reward is None or _shifted(reward, 2) == trajectory.score
    return {
        "id": trajectory.id,
        "conversations": [_written_turn(turn) for turn in dialogue.turns],
        **({} if reward is None else {"reward": reward}),
        **dialogue.columns,
        **_extras(trajectory, dialogue, score=None if exact else trajectory.score).field(),
    }


def write_agentgym(trajectory: Trajectory) -> dict[str, JsonValue]:
    """The trajectory as a record of AgentGym; importing it gives the same trajectory."""
    dialogue = write_dialogue(trajectory, AGENTGYM, RESERVED)
    return {
        "item_id": trajectory.id,
        "conversations": [
            _written_turn(turn) | {"loss": turn.learnt if turn.role == "agent" else None}
            for turn in dialogue.turns
        ],
        **dialogue.columns,
        **_extras(trajectory, dialogue, score=trajectory.score).field(),
    }


def _written_turn(turn: Turn) -> dict[str, JsonValue]:
    speaker = {"agent": "gpt", "user": "human"}.get(turn.role, turn.role)
    return {"from": speaker, "value": turn.text}


def _extras(trajectory: Trajectory, dialogue: Dialogue, *, score: float | None) -> Extras:
    is_implied = _task(trajectory.id, dialogue.columns) == trajectory.task
    return dialogue.extras.model_copy(
        update={
            "score": score,
            "task": None if is_implied else trajectory.task,
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
    """The number times a power of ten, without rounding its decimal digits."""
    return float(Decimal(repr(number)).scaleb(places))
