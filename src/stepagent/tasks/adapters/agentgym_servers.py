"""What the servers of AgentGym are asked and answer: the fields of each, and how it begins.

Read in `agentenv-*/` of github.com/WooooDyy/AgentGym; SearchQA's server is AgentGym-RL's. Those of
Maze and Wordle (LMRL-Gym) are one server with a path for each.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue

from stepagent.tasks.adapters.replies import Unusable, quoted, text

Get = Callable[[str], JsonValue]
"""Asks the server for one more thing about the session, by its path."""

Environment = Literal[
    "academia", "alfworld", "babyai", "maze", "movie", "sciworld", "searchqa", "sheet", "sqlgym",
    "textcraft", "todo", "weather", "webarena", "webshop", "wordle",
]  # fmt: skip


def _webshop_start(reply: JsonValue, get: Get) -> tuple[str, str]:
    if not isinstance(reply, list) or not reply:
        raise Unusable(f"expected a list with the observation, got {quoted(reply)}")
    instruction = text(get("/instruction_text"), "the instruction")
    return instruction.removeprefix("Instruction:").strip(), text(reply[0], "the observation")


def _sciworld_start(reply: JsonValue, get: Get) -> tuple[str, str]:
    return text(field_of(reply, "task_description"), "the instruction"), text(
        field_of(reply, "observation"), "the observation"
    )


def _alfworld_start(reply: JsonValue, get: Get) -> tuple[str, str]:
    """The first observation lists the actions, as AgentGym's own client has it."""
    observation = text(field_of(reply, "observation"), "the observation")
    actions = field_of(reply, "available_actions")
    if not isinstance(actions, list):
        raise Unusable(f"'available_actions' is no list: {quoted(actions)}")
    listed = ",".join(text(action, "an action") for action in actions)
    instruction = observation.rpartition("Your task is to: ")[2].strip()
    return instruction, f"{observation}\nAVAILABLE ACTIONS: {listed}"


def _searchqa_start(reply: JsonValue, get: Get) -> tuple[str, str]:
    observation = text(reply, "the observation")
    return observation.rpartition("Question: ")[2].strip(), observation


def _babyai_start(reply: JsonValue, get: Get) -> tuple[str, str]:
    observation = text(field_of(reply, "observation"), "the observation")
    goal = observation.removeprefix("Your goal: ").partition("\n")[0]
    return goal.strip(), observation


def _textcraft_start(reply: JsonValue, get: Get) -> tuple[str, str]:
    observation = text(field_of(reply, "observation"), "the observation")
    return observation.rpartition("Goal: ")[2].strip(), observation


def _maze_start(reply: JsonValue, get: Get) -> tuple[str, str]:
    return MAZE, text(field_of(reply, "observation"), "the observation")


def _wordle_start(reply: JsonValue, get: Get) -> tuple[str, str]:
    return WORDLE, text(field_of(reply, "observation"), "the observation")


def _sqlgym_start(reply: JsonValue, get: Get) -> tuple[str, str]:
    if not isinstance(reply, list) or not reply:
        raise Unusable(f"expected a list with the observation, got {quoted(reply)}")
    observation = text(reply[0], "the observation")
    return SQL, observation


def _tool_start(reply: JsonValue, get: Get) -> tuple[str, str]:
    observation = text(reply, "the observation")
    goal = observation.partition("accomplish the goal: ")[2] or observation
    return goal.removesuffix("\nGive me one action.").strip(), observation


def _webarena_start(reply: JsonValue, get: Get) -> tuple[str, str]:
    observation = text(field_of(reply, "observation"), "the observation")
    if observation == "TimeoutError":
        raise Unusable("the page could not be opened (TimeoutError)")
    return text(field_of(reply, "object"), "the instruction"), observation


MAZE = "Reach the goal of the maze: move up, move down, move left or move right."
WORDLE = (
    "Guess the word of five letters, written like s h i r e. After a guess: b is a wrong letter, y "
    "one that belongs elsewhere, g one in its place."
)
SQL = "Answer the question about the database with one SQL statement."
"""What to do, where the server does not say it."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """What the fields of one environment's server are called."""

    start: Callable[[JsonValue, Get], tuple[str, str]]
    """Reads instruction and first observation from the answer to `/reset`."""
    session: str
    """Names the session in every request."""
    item: str
    """Names the item's number in `/reset`."""
    observation: str = "observation"
    score: str = "reward"
    best: float = 1.0
    """The score that is worth 100."""
    create: Mapping[str, JsonValue] = field(default_factory=dict)
    """What `/create` wants."""
    reset: Mapping[str, JsonValue] = field(default_factory=dict)
    """What `/reset` wants besides session and item."""
    done: str = "done"
    """Says that the episode has ended."""
    success: str | None = None
    """Says that it is solved; None: it is if the score is the best."""
    prefix: str = ""
    """Before every path."""


TOOLS: tuple[Environment, ...] = ("academia", "movie", "sheet", "todo", "weather")

SERVERS: Mapping[Environment, Server] = {
    "webshop": Server(
        start=_webshop_start, session="env_idx", item="session_id", observation="state"
    ),
    "sciworld": Server(
        start=_sciworld_start, session="id", item="data_idx", score="score", best=100.0
    ),
    "alfworld": Server(
        start=_alfworld_start, session="id", item="game", reset={"world_type": "Text"}
    ),
    "searchqa": Server(start=_searchqa_start, session="env_idx", item="id", create={"id": 0}),
    # The reward is less than 1 for every move made; an episode ends only when it is solved.
    "babyai": Server(
        start=_babyai_start, session="id", item="data_idx", score="score", success="done"
    ),
    "textcraft": Server(
        start=_textcraft_start, session="id", item="data_idx",
        create={"commands": None, "goal": None},
    ),
    "maze": Server(start=_maze_start, session="id", item="game", prefix="/maze"),
    "wordle": Server(start=_wordle_start, session="id", item="seed", prefix="/wordle"),
    "sqlgym": Server(
        start=_sqlgym_start, session="env_idx", item="item_id", observation="state"
    ),
    "webarena": Server(
        start=_webarena_start, session="env_idx", item="idx", reset={"seed": 0}, done="terminated"
    ),
    **dict.fromkeys(
        TOOLS, Server(start=_tool_start, session="env_idx", item="id", create={"id": 0})
    ),
}  # fmt: skip


def field_of(reply: JsonValue, name: str) -> JsonValue:
    """A field of an answer; `Unusable` if it is not there."""
    if not isinstance(reply, dict) or name not in reply:
        raise Unusable(f"expected {name!r} in the answer, got {quoted(reply)}")
    return reply[name]
