"""The web application of a served task: OpenEnv's routes and WebSocket sessions."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import Annotated, Any, get_args

from fastapi import Body, FastAPI, HTTPException, Request, WebSocket, WebSocketDisconnect
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from pydantic_core import from_json

from stepagent.console.printable import printable, shown
from stepagent.tasks.base import Split, Task
from stepagent.tasks.serving.seats import Full, Seat, Seats
from stepagent.tasks.serving.session import (
    EpisodeState,
    FirstObservation,
    Refused,
    ResetRequest,
    ServedSession,
    StepRequest,
    TextAction,
    TextObservation,
    failure,
)

SPLITS: tuple[Split, ...] = get_args(Split)

SPLIT_TYPES = {"train": "train", "dev": "validation", "test": "test"}
"""OpenEnv's names for our splits."""

CLOSE_SECONDS = 5.0
"""Time limit for sending the last message and closing a connection."""

INVALID_JSON, UNKNOWN_TYPE, INVALID_MESSAGE = "INVALID_JSON", "UNKNOWN_TYPE", "VALIDATION_ERROR"


class TaskServer:
    """Serves a task over HTTP and WebSocket; sessions run in parallel, each in its own thread."""

    def __init__(self, task: Task, max_sessions: int, idle_seconds: float) -> None:
        """Does not use the task yet; a session without a message for `idle_seconds` is closed."""
        self._task = task
        self._seats = Seats(max_sessions)
        self._idle_seconds = idle_seconds

    def app(self, max_request_bytes: int) -> FastAPI:
        """The application with all its routes."""
        app = FastAPI(
            title=f"StepAgent: {self._task.name}", version="1.0.0", max_body_size=max_request_bytes
        )
        app.add_exception_handler(RequestValidationError, _invalid)
        app.post("/reset")(self._reset)
        app.post("/step")(self._step)
        app.post("/mcp")(self._mcp)
        app.get("/state")(self._state)
        app.get("/health")(self._health)
        app.get("/metadata")(self._metadata)
        app.get("/schema")(self._schema)
        app.get("/list_environments")(self._list_environments)
        app.get("/{name}/splits")(self._list_splits)
        app.post("/{name}/tasks")(self._list_tasks)
        app.post("/{name}/num_tasks")(self._num_tasks)
        app.post("/{name}/task")(self._get_task)
        app.post("/{name}/task_range")(self._get_task_range)
        app.websocket("/ws")(self._websocket)
        return app

    @asynccontextmanager
    async def _session(self, *, wait: bool) -> AsyncIterator[tuple[ServedSession, Seat]]:
        """A new session; raises `Full` if the maximum number is in use."""
        async with self._seats.take(wait=wait) as seat:
            session = ServedSession(self._task)
            try:
                yield session, seat
            finally:
                await session.close()

    # HTTP: every request gets its own environment, as in OpenEnv.

    async def _reset(self, request: Annotated[ResetRequest, Body()] = ResetRequest()) -> Any:  # noqa: B008
        """The first observation of an item; the episode ends with the request."""
        try:
            async with self._session(wait=False) as (session, seat):
                seat.is_silent = False
                return await session.reset(request)
        except Full as error:
            raise HTTPException(503, str(error)) from None
        except Refused as error:
            raise HTTPException(422, str(error)) from None

    async def _step(self, request: StepRequest) -> Any:
        """Refused, since HTTP requests share no episode."""
        raise HTTPException(409, "HTTP has no episodes; connect to the WebSocket /ws to play")

    async def _mcp(self) -> Any:
        error = {"code": -32601, "message": "Method not found: this environment has no tools"}
        return {"jsonrpc": "2.0", "id": None, "error": error}

    async def _state(self) -> EpisodeState:
        return EpisodeState()

    async def _health(self) -> dict[str, str]:
        return {"status": "healthy"}

    def _metadata(self) -> dict[str, str]:
        facts = json.dumps(self._task.facts(), indent=2, default=str)
        return {
            "name": self._task.name,
            "description": f"The text environment {self._task.name}, served by StepAgent.",
            "version": version("stepagent"),
            "readme_content": f"```json\n{facts}\n```\n",
        }

    async def _schema(self) -> dict[str, Any]:
        return {
            "action": TextAction.model_json_schema(),
            "observation": TextObservation.model_json_schema(),
            "reset_observation": FirstObservation.model_json_schema(),
            "state": EpisodeState.model_json_schema(),
        }

    # The Task API; these handlers run in threads, since a task may have to load its items first.

    def _list_environments(self) -> list[str]:
        return [self._task.name]

    def _list_splits(self, name: str) -> list[dict[str, str]]:
        self._check(name)
        return [{"name": split, "type": SPLIT_TYPES[split]} for split in SPLITS]

    def _list_tasks(self, name: str, split: Annotated[Split, Body(embed=True)]) -> Any:
        return {"tasks": self._specs(name, split), "env_name": self._task.name}

    def _num_tasks(self, name: str, split: Annotated[Split, Body(embed=True)]) -> dict[str, int]:
        self._check(name)
        return {"num_tasks": len(self._task.items(split))}

    def _get_task(
        self, name: str, split: Annotated[Split, Body()], index: Annotated[int, Body(ge=0)]
    ) -> dict[str, Any]:
        specs = self._specs(name, split, index, index + 1)
        if not specs:
            raise HTTPException(400, "Invalid task index")
        return {"task": specs[0]}

    def _get_task_range(
        self,
        name: str,
        split: Annotated[Split, Body()],
        start: Annotated[int | None, Body()] = None,
        stop: Annotated[int | None, Body()] = None,
    ) -> dict[str, Any]:
        return {"tasks": self._specs(name, split, start, stop)}

    def _specs(
        self, name: str, split: Split, start: int | None = None, stop: int | None = None
    ) -> list[dict[str, Any]]:
        self._check(name)
        items: Sequence[str] = self._task.items(split)
        first = slice(start, stop).indices(len(items))[0]
        return [
            {"id": item, "group": self._task.group(item), "split": split, "index": index}
            for index, item in enumerate(items[start:stop], start=first)
        ]

    def _check(self, name: str) -> None:
        if name.lower() != self._task.name.lower():
            raise HTTPException(404, f"unknown environment {shown(name)}")

    # The WebSocket: one session per connection.

    async def _websocket(self, socket: WebSocket) -> None:
        await socket.accept()
        with suppress(WebSocketDisconnect):  # the player may leave at any time
            try:
                async with self._session(wait=True) as (session, seat):
                    await self._talk(socket, session, seat)
            except Full as error:
                await _close(socket, _error("CAPACITY_REACHED", str(error)), 1000)
            except TimeoutError:
                reason = "the session was idle for too long; connect again"
                await _close(socket, _error("SESSION_ERROR", reason), 1008)

    async def _talk(self, socket: WebSocket, session: ServedSession, seat: Seat) -> None:
        """Answers messages until `close`; raises TimeoutError if the player stops responding."""
        while True:
            async with seat.within(self._idle_seconds):
                message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            seat.is_silent = False
            reply = await _reply(session, message.get("text") or message.get("bytes") or b"")
            if reply is None:
                await socket.close()
                return
            async with asyncio.timeout(self._idle_seconds):
                await socket.send_text(reply)


async def _close(socket: WebSocket, last_words: str, code: int) -> None:
    """Sends a last message and closes the connection; gives up on players that do not read."""
    with suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await socket.send_text(last_words)
            await socket.close(code)


async def _reply(session: ServedSession, raw: str | bytes) -> str | None:
    """The answer to a message; None for `close`."""
    try:
        message = from_json(raw)
    except ValueError as error:
        return _error(INVALID_JSON, f"Invalid JSON: {error}")
    if not isinstance(message, dict):
        return _error(INVALID_MESSAGE, "Invalid message: expected an object")
    kind, data = message.get("type"), message.get("data", {})
    try:
        match kind:
            case "reset":
                answer = await session.reset(ResetRequest.model_validate(data))
            case "step":
                answer = await session.step(TextAction.model_validate(data))
            case "state":
                return _dumps({"type": "state", "data": session.state.model_dump()})
            case "close":
                return None
            case _:
                return _error(UNKNOWN_TYPE, f"Unknown message type: {printable(str(kind))}")
        return _dumps({"type": "observation", "data": answer})
    except ValidationError as error:
        return _error(INVALID_MESSAGE, "Invalid message", errors=_problems(error.errors()))
    except Refused as error:
        return _error(INVALID_MESSAGE, str(error))
    except Exception as error:
        return _error("EXECUTION_ERROR", failure(error))


def _problems(errors: Sequence[Any]) -> list[dict[str, Any]]:
    """The first few of pydantic's errors, without the input, which could be long."""
    return [
        {
            "type": error["type"],
            "loc": [part if isinstance(part, int) else printable(part) for part in error["loc"]][
                :5
            ],
            "msg": printable(error["msg"], limit=200),
        }
        for error in errors[:3]
    ]


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    """Answers an invalid request like FastAPI, but without repeating the whole request."""
    assert isinstance(error, RequestValidationError)
    return JSONResponse({"detail": _problems(error.errors())}, 422)


def _error(code: str, message: str, **more: Any) -> str:
    return _dumps({"type": "error", "data": {"message": message, "code": code, **more}})


def _dumps(reply: dict[str, Any]) -> str:
    # ASCII, since an engine's text may contain lone surrogates, which UTF-8 cannot encode.
    return json.dumps(reply, allow_nan=False)
