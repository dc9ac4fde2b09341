"""The HTTP routes of AgentGym's servers, oddities included, around a corridor each.

What each route takes and gives was read in `agentenv-*/agentenv_*/{server,environment,model}.py`.
"""

from typing import Annotated, Any

from fastapi import Body, FastAPI
from pydantic import BaseModel

from corridor import Corridor

GOAL = "Take the treasure."
NUM_ITEMS = 20


class Session:
    """A corridor; scores fall to nothing again after the treasure was seen, as rewards do."""

    def __init__(self) -> None:
        self.corridor: Corridor | None = None
        self.is_over = False

    def start(self, number: int) -> str:
        if number >= NUM_ITEMS:
            raise IndexError("list index out of range")
        self.corridor, self.is_over = Corridor(number), False
        return self.corridor.look()

    def act(self, action: str) -> tuple[str, float, bool]:
        assert self.corridor is not None
        observation, reward, self.is_over = self.corridor.act(action)
        return observation, reward, self.is_over


def webshop(*, has_close: bool = False) -> FastAPI:
    """Sessions are bare numbers; a wrong one fails with 500; the older server has no `/close`."""
    app, sessions = FastAPI(), dict[int, Session]()
    app.state.sessions = sessions

    class StepQuery(BaseModel):
        env_idx: int
        action: str

    class StepResponse(BaseModel):
        state: str
        reward: float
        done: bool
        info: None

    class ResetQuery(BaseModel):
        env_idx: int
        session_id: int | None = None

    class CloseQuery(BaseModel):
        env_idx: int

    @app.post("/create", response_model=int)
    def create() -> int:
        session = 48_000_000 + len(sessions)  # the real ones are random, up to 48950076
        sessions[session] = Session()
        return session

    @app.post("/reset", response_model=tuple[str, None])
    def reset(query: ResetQuery) -> tuple[str, None]:
        assert query.session_id is not None
        seen = sessions[query.env_idx].start(query.session_id)
        return f"WebShop [SEP] Instruction: [SEP] {GOAL} [SEP] {seen}", None

    @app.post("/step", response_model=StepResponse)
    def step(query: StepQuery) -> StepResponse:
        seen, reward, is_over = sessions[query.env_idx].act(query.action)
        return StepResponse(state=seen, reward=reward, done=is_over, info=None)

    @app.get("/instruction_text", response_model=str)
    def instruction_text(env_idx: int) -> str:
        assert env_idx in sessions
        return f"Instruction: {GOAL}"

    if has_close:

        @app.post("/close")
        def close(query: CloseQuery) -> dict[str, bool]:
            return {"closed": sessions.pop(query.env_idx, None) is not None}

    return app


class _Numbered(BaseModel):
    id: int


class _NumberedStep(_Numbered):
    action: str


def _numbered(sessions: dict[int, Session], number: int, *, is_reset: bool = False) -> Session:
    """The session, or the errors that these servers say with status 200."""
    if number not in sessions:
        raise ValueError(f"The id {number} is not valid.")
    if sessions[number].is_over and not is_reset:
        raise ValueError(f"The task with environment {number} has finished.")
    return sessions[number]


def sciworld() -> FastAPI:
    """Sessions are `{"id": 0}`; every failure is a 200 with `error`; the score is 0 to 100."""
    app, sessions = FastAPI(), dict[int, Session]()
    app.state.sessions = sessions
    totals = dict[int, float]()

    class ResetBody(_Numbered):
        data_idx: int

    @app.post("/create")
    def create() -> dict[str, int]:
        sessions[len(sessions)] = Session()
        return {"id": len(sessions) - 1}

    @app.post("/reset")
    def reset(body: ResetBody) -> dict[str, Any]:
        try:
            seen = _numbered(sessions, body.id, is_reset=True).start(body.data_idx)
        except Exception as error:
            return {"error": str(error)}
        totals[body.id] = 0.0
        return {
            "task_name": "find", "var_num": body.data_idx, "task_description": GOAL,
            "observation": seen, "reward": 0, "score": 0, "deleted": False, "done": False,
        }  # fmt: skip

    @app.post("/step")
    def step(body: _NumberedStep) -> dict[str, Any]:
        try:
            session = _numbered(sessions, body.id)
            seen, reward, is_over = session.act(body.action)
        except Exception as error:
            return {"error": str(error)}
        if body.action == "focus on wall":  # a fatal action, which the real engine punishes so
            session.is_over = True
            return {"observation": "No.", "reward": -100, "score": -100, "done": True}
        score = 100 if is_over else max(totals[body.id], 100 * reward)
        gain, totals[body.id] = score - totals[body.id], score
        return {"observation": seen, "reward": gain, "score": score, "done": is_over}

    @app.post("/close")
    def close(body: _Numbered) -> bool:
        del sessions[body.id]
        return True

    return app


def alfworld() -> FastAPI:
    """As ScienceWorld's, with the actions that can be done; the reward is 1 if the game is won."""
    app, sessions = FastAPI(), dict[int, Session]()
    app.state.sessions = sessions
    actions = ["go east", "go west", "take"]

    class ResetBody(_Numbered):
        game: int
        world_type: str

    @app.post("/create")
    async def create() -> dict[str, int]:
        sessions[len(sessions)] = Session()
        return {"id": len(sessions) - 1}

    @app.post("/reset")
    async def reset(body: ResetBody) -> dict[str, Any]:
        if body.world_type not in ("Text", "Embody", "Hybrid"):
            return {"error": 'world_type must be one of "Text", "Embody" and "Hybrid"'}
        try:
            seen = _numbered(sessions, body.id, is_reset=True).start(body.game)
        except Exception as error:
            return {"error": str(error)}
        return {
            "id": body.id,
            "observation": f"{seen}\nYour task is to: {GOAL}",
            "available_actions": actions,
            "task_type": "find/trial_1",
        }

    @app.post("/step")
    async def step(body: _NumberedStep) -> dict[str, Any]:
        try:
            seen, _, is_over = _numbered(sessions, body.id).act(body.action)
        except Exception as error:
            return {"error": str(error)}
        won = float(is_over)
        return {
            "observation": seen, "reward": won, "available_actions": actions, "done": is_over
        }  # fmt: skip

    return app


def searchqa() -> FastAPI:
    """`/create` wants an item too; sessions are bare numbers; answers may be tried again."""
    app, sessions = FastAPI(), dict[int, Session]()
    app.state.sessions = sessions

    class CreateQuery(BaseModel):
        id: int

    class ResetQuery(BaseModel):
        env_idx: int
        id: int

    class StepQuery(BaseModel):
        env_idx: int
        action: str

    class StepResponse(BaseModel):
        observation: str
        reward: float
        done: bool
        info: Any

    class CloseBody(BaseModel):
        env_idx: int

    @app.post("/create", response_model=int)
    def create(query: CreateQuery) -> int:
        sessions[len(sessions)] = Session()
        return len(sessions) - 1

    @app.post("/reset", response_model=str)
    def reset(query: ResetQuery) -> str:
        seen = sessions[query.env_idx].start(query.id)
        return f"Reason first. {seen}\n\n Question: {GOAL}"

    @app.post("/step", response_model=StepResponse)
    def step(query: StepQuery) -> StepResponse:
        seen, reward, is_over = sessions[query.env_idx].act(query.action)
        return StepResponse(observation=seen, reward=reward, done=is_over, info=None)

    @app.post("/close")
    def close(body: CloseBody) -> bool:
        return sessions.pop(body.env_idx, None) is not None

    return app


APPS = {"webshop": webshop, "sciworld": sciworld, "alfworld": alfworld, "searchqa": searchqa}


def _plain(
    *,
    first: Any,
    session: str = "id",
    item: str = "data_idx",
    observation: str = "observation",
    made: Any = lambda number: {"id": number},
    wants: dict[str, Any] | None = None,
    prefix: str = "",
    step: Any = lambda reply: reply,
) -> FastAPI:
    """A server without oddities but those that are given; every failure is a 200 with `error`."""
    app, sessions = FastAPI(), dict[int, Session]()
    app.state.sessions = sessions

    @app.post(f"{prefix}/create")
    def create(body: Annotated[Any, Body()] = None) -> Any:
        assert body == wants
        sessions[len(sessions)] = Session()
        return made(len(sessions) - 1)

    @app.post(f"{prefix}/reset")
    def reset(body: Annotated[dict[str, Any], Body()]) -> Any:
        try:
            return first(_numbered(sessions, body[session], is_reset=True).start(body[item]))
        except (ValueError, IndexError) as error:
            return {"error": str(error)}

    @app.post(f"{prefix}/step")
    def act(body: Annotated[dict[str, Any], Body()]) -> Any:
        try:
            seen, reward, is_over = _numbered(sessions, body[session]).act(body["action"])
        except ValueError as error:
            return {"error": str(error)}
        return step({observation: seen, "reward": reward, "done": is_over})

    return app


def babyai(worth: float = 1.0) -> FastAPI:
    """The score adds up what every step says, and the actions are listed behind the observation."""
    return _plain(
        first=lambda seen: {
            "observation": f"Your goal: {GOAL}\n{seen}\nAvailable actions: [\"go east\"]",
            "reward": 0, "score": 0, "deleted": False, "done": False,
        },
        step=lambda reply: reply | {
            "reward": worth * reply["done"], "score": worth * reply["done"]
        },
    )  # fmt: skip


def textcraft() -> FastAPI:
    """`/create` wants a body; the goal is the last line of the recipes."""
    return _plain(
        wants={"commands": None, "goal": None},
        first=lambda seen: {"id": 0, "observation": f"Crafting commands:\n{seen}\n\nGoal: {GOAL}"},
    )


def maze() -> FastAPI:
    """One of two environments of a server, below a path; nothing says what to do."""
    return _plain(prefix="/maze", item="game", first=lambda seen: {"observation": seen})


def wordle() -> FastAPI:
    """The other one; an item is a seed."""
    return _plain(prefix="/wordle", item="seed", first=lambda seen: {"id": 0, "observation": seen})


def sqlgym() -> FastAPI:
    """Sessions are bare numbers, and the first observation comes in a list."""
    return _plain(
        session="env_idx", item="item_id", observation="state", made=int,
        first=lambda seen: [seen, None],
    )  # fmt: skip


def tool() -> FastAPI:
    """Movie, weather and others: the goal is in the first text."""
    return _plain(
        session="env_idx", item="id", made=int, wants={"id": 0},
        first=lambda seen: (
            f"Now new trial starts. {seen}\nYou should perform actions to accomplish the goal: "
            f"{GOAL}\nGive me one action."
        ),
    )  # fmt: skip


def webarena() -> FastAPI:
    """The session is wrapped under its own name, and the end is called `terminated`."""
    return _plain(
        session="env_idx", item="idx", made=lambda number: {"env_idx": number},
        first=lambda seen: {"observation": seen, "sites": ["shop"], "object": GOAL},
        step=lambda reply: {
            "observation": reply["observation"], "reward": reply["reward"],
            "terminated": reply["done"], "truncated": False, "info": None,
        },
    )  # fmt: skip


PLAIN = {
    "babyai": babyai, "textcraft": textcraft, "maze": maze, "wordle": wordle, "sqlgym": sqlgym,
    "webarena": webarena,
    **dict.fromkeys(("academia", "movie", "sheet", "todo", "weather"), tool),
}  # fmt: skip
