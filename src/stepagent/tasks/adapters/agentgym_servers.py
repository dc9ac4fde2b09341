"""Request and response fields of AgentGym's servers, and how each starts an episode.

Taken from `agentenv-*/` of github.com/WooooDyy/AgentGym; SearchQA's server is from AgentGym-RL.
Maze and Wordle (LMRL-Gym) share a server, with a path prefix for each.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue

from stepagent.tasks.adapters.replies import Unusable, quoted, text

Get = Callable[[str], JsonValue]
"""Requests a path of the session from the server."""

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
    """Appends the available actions to the first observation, as AgentGym's client does."""
    observation = text(field_of(reply, "observation"), "the observation")
    actions = field_of(reply, "available_actions")
    if not isinstance(actions, list):
        raise Unusable(f"'available_actions' is not a list: {quoted(actions)}")
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
"""Instructions of environments whose server gives none."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """Field names and scale of one environment's server."""

    start: Callable[[JsonValue, Get], tuple[str, str]]
    """Returns instruction and first observation, from the answer to `/reset`."""
    session: str
    """Field of the session in every request."""
    item: str
    """Field of the item's number in `/reset`."""
    observation: str = "observation"
    score: str = "reward"
    best: float = 1.0
    """The score that maps to 100."""
    exceeds_best: bool = False
    """Whether the score may exceed the best by a fault of the server; it is then clipped."""
    create: Mapping[str, JsonValue] = field(default_factory=dict)
    """Body of `/create`."""
    reset: Mapping[str, JsonValue] = field(default_factory=dict)
    """Further fields of `/reset`."""
    done: str = "done"
    """Field that says whether the episode has ended."""
    success: str | None = None
    """Field that says whether the item is solved; None: if the score is the best."""
    prefix: str = ""
    """Prefix of every path."""


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
    # Every move lowers the reward below 1, and an episode ends only when it is solved. The server
    # adds its last reward to the score again at every later action that has no effect.
    "babyai": Server(
        start=_babyai_start, session="id", item="data_idx", score="score", success="done",
        exceeds_best=True,
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
    """A field of an answer; raises `Unusable` if it is missing."""
    if not isinstance(reply, dict) or name not in reply:
        raise Unusable(f"expected {name!r} in the answer, got {quoted(reply)}")
    return reply[name]
