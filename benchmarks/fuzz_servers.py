"""Fuzz cases for network data: requests to our task server, and answers of servers to our clients.

No socket is opened: the server's ASGI application is called directly, and the clients' connections
are replaced.
"""

import asyncio
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx2
import openai  # noqa: F401 -- so that its import is not timed later
from fuzz_inputs import MARK, Loss, damaged, mark, mutated, text, value
from websockets.exceptions import ConnectionClosedOK

from stepagent.chat.client import ChatClient, ChatConfig, Message
from stepagent.tasks.adapters.agentgym import AgentGymConfig, AgentGymTask
from stepagent.tasks.adapters.openenv import OpenEnvConfig, OpenEnvTask
from stepagent.tasks.serving.server import serving

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from corridor import corridor_task

KEY = "zk-secret"
os.environ["OPENAI_API_KEY"] = KEY

MAX_REPLY = 20_000
"""Most characters of an answer to an invalid request."""


class Made(Exception):
    """Carries the application out of `serve` before it listens."""


@cache
def _application() -> Any:
    """The application that `serving` would run."""

    def take(config: Any) -> None:
        raise Made(config.app)

    try:
        with patch("uvicorn.Server", take), serving(corridor_task(step_limit=5)):
            raise RuntimeError("serving makes no server of uvicorn's any more")
    except Made as made:
        return made.args[0]


def serve(rng: random.Random, folder: Path) -> None:
    """Sends a player's messages over the WebSocket: each but a goodbye gets one valid answer."""
    frames = [frame(rng, request(rng)) for _ in range(rng.randint(1, 4))]
    sent = asyncio.run(talk([{"type": "websocket.connect"}, *map(received, frames)]))
    answers = [
        json.loads(message["text"]) for message in sent if message["type"] == "websocket.send"
    ]
    closed = any(message["type"] == "websocket.close" for message in sent)
    if len(answers) != len(frames) and not closed:
        raise Loss(f"{len(frames)} messages, {len(answers)} answers: {frames}")
    for one in answers:
        if one["type"] not in ("observation", "state", "error"):
            raise Loss(f"an answer of no type: {one}")
        if len(json.dumps(one)) > MAX_REPLY:
            raise Loss(f"an answer of {len(json.dumps(one))} characters to {frames[0][:200]!r}")


def request(rng: random.Random) -> dict[str, Any]:
    """A message, usually a valid one."""
    place = {"split": rng.choice(("train", "dev", "test")), "index": rng.randrange(5)}
    return rng.choice(
        (
            {"type": "reset", "data": rng.choice(({"item": "train/0"}, place, {"seed": 3}, {}))},
            {"type": "reset", "data": {"item": text(rng), "seed": rng.choice((0, -1, 2**70))}},
            {"type": "step", "data": {"text": rng.choice(("go east", "take", text(rng)))}},
            {"type": "state"},
            {"type": text(rng), "data": value(rng)},
        )
    )


def frame(rng: random.Random, message: dict[str, Any]) -> bytes:
    """A message as bytes, often damaged."""
    if rng.random() < 0.4:
        message = mutated(rng, message)
    if rng.random() < 0.05:
        message["data"] = {rng.choice(("text", "item", "x")): text(rng) * 3000}
    if rng.random() < 0.05:
        message = {f"field {number}": number for number in range(5000)} | message
    whole = json.dumps(message).encode()
    return damaged(rng, whole) if rng.random() < 0.3 else whole


def received(raw: bytes) -> dict[str, Any]:
    """A frame as an ASGI event: as text if it is valid text."""
    try:
        return {"type": "websocket.receive", "text": raw.decode()}
    except UnicodeDecodeError:
        return {"type": "websocket.receive", "bytes": raw}


async def talk(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Everything that the application sends in reply to the messages."""
    waiting, sent = iter(messages), list[dict[str, Any]]()

    async def receive() -> dict[str, Any]:
        return next(waiting, {"type": "websocket.disconnect", "code": 1000})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "websocket", "path": "/ws", "raw_path": b"/ws", "query_string": b"",
        "headers": [(b"host", b"127.0.0.1:2")],
        "root_path": "", "scheme": "ws", "subprotocols": [], "asgi": {"version": "3.0"},
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {},
    }  # fmt: skip
    await _application()(scope, receive, send)
    return sent


class Connection:
    """A WebSocket that returns the given answers."""

    def __init__(self, answers: list[bytes]) -> None:
        """Closes after the last answer."""
        self.answers = iter(answers)

    def send(self, message: str) -> None:
        """Ignores the message."""

    def recv(self, **_: Any) -> str | bytes:
        """The next answer."""
        for raw in self.answers:
            return received(raw).get("text", raw)
        raise ConnectionClosedOK(None, None)


@cache
def _openenv_task() -> OpenEnvTask:
    return OpenEnvTask(OpenEnvConfig(), items={"train": {"a": {}}})


@cache
def _agentgym_task(kind: Any) -> AgentGymTask:
    return AgentGymTask(AgentGymConfig(environment=kind, train=(1,)))


@cache
def _chat_client() -> ChatClient:
    return ChatClient("m", ChatConfig(base_url="http://127.0.0.1:9/v1", max_retries=0))


def openenv(rng: random.Random, folder: Path) -> None:
    """Reads an OpenEnv server's frames: the agent sees what it says, or our error is raised."""
    seen = [text(rng), text(rng)]
    answers = [
        {"observation": {"text": seen[0], "instruction": "Go."}, "reward": None, "done": False},
        {"observation": {"text": seen[1]}, "reward": 0.5, "done": True},
    ]
    answers[1]["metadata"] = {"score": rng.choice((50.0, 100, 0)), "success": False}
    frames = [{"type": "observation", "data": answer} for answer in answers]
    if rng.random() < 0.2:
        frames[rng.randrange(2)] = {"type": "error", "data": {"message": text(rng), "code": "X"}}
    is_good, raw = sabotaged(rng, frames)
    env = _openenv_task().make_env()
    env._session._connect = lambda: Connection(raw)  # type: ignore[attr-defined]
    check_seen(env, "a", seen, is_good)


def agentgym(rng: random.Random, folder: Path) -> None:
    """Reads an AgentGym server's answers, likewise."""
    kind = rng.choice(("webshop", "sciworld", "alfworld", "searchqa"))
    seen = [text(rng), text(rng)]
    start: dict[str, Any] = {
        "webshop": [seen[0], None],
        "sciworld": {"observation": seen[0], "task_description": "Go."},
        "alfworld": {"observation": f"{seen[0]} Your task is to: go.", "available_actions": ["go"]},
        "searchqa": f"{seen[0]} Question: Who?",
    }
    step = {"state": seen[1], "observation": seen[1], "reward": 0.5, "score": 50, "done": True}
    is_good, (first, second) = sabotaged(rng, [{"reply": start[kind]}, step])
    if is_good:
        first = json.dumps(start[kind]).encode()
    status = rng.choice((200, 200, 200, 302, 404, 422, 500))

    def answer(request: Any) -> Any:
        body = {"/create": b'{"id": 3}', "/reset": first, "/step": second}
        if request.url.path == "/instruction_text":
            return httpx2.Response(200, content=b'"Instruction: Go."')
        return httpx2.Response(status, content=body.get(request.url.path, b"null"))

    with answering(answer):
        check_seen(_agentgym_task(kind).make_env(), f"{kind}_1", seen, is_good and status == 200)


def check_seen(env: Any, item: str, seen: list[str], is_good: bool) -> None:
    """Plays one step; checks that the texts of a valid server are seen."""
    try:
        first, info = env.reset(options={"item": item})
        second, reward, *_ = env.step("go")
    except (ValueError, RuntimeError) as error:
        if is_good and type(error).__module__.startswith("stepagent."):
            raise Loss(f"a good answer was refused: {error}") from None
        raise
    if is_good and (seen[0] not in first or second != seen[1] or reward != 0.5):
        raise Loss(f"{seen} became {first!r}, {second!r}, {reward}")
    for told in (first, second, info["instruction"]):
        if not isinstance(told, str):
            raise Loss(f"no text: {told!r}")


def sabotaged(rng: random.Random, answers: list[dict[str, Any]]) -> tuple[bool, list[bytes]]:
    """Damages some answers; returns whether they are still valid, and them as bytes."""
    raw = [json.dumps(answer).encode() for answer in answers]
    is_good = rng.random() < 0.3 and not any(one.get("type") == "error" for one in answers)
    if not is_good:
        at = rng.randrange(len(answers))
        if rng.random() < 0.6:
            raw[at] = json.dumps(mutated(rng, answers[at])).encode()
        else:
            raw[at] = damaged(rng, raw[at])
    return is_good, raw


@contextmanager
def answering(answer: Callable[[Any], Any]) -> Iterator[None]:
    """Within the block, the function answers every request, and pauses take no time."""

    async def answer_later(self: Any, request: Any) -> Any:
        return answer(request)

    with (
        patch.object(httpx2.HTTPTransport, "handle_request", lambda self, request: answer(request)),
        patch.object(httpx2.AsyncHTTPTransport, "handle_async_request", answer_later),
        patch("time.sleep", lambda seconds: None),
    ):
        yield


def chat(rng: random.Random, folder: Path) -> None:
    """Reads a chat server's answers: the reply is what it says, or our error is raised."""
    said, thought = text(rng), rng.choice(("", mark(rng)))
    message: dict[str, Any] = {"role": "assistant", "content": said}
    if thought:
        message[rng.choice(("reasoning", "reasoning_content"))] = thought
    whole: dict[str, Any] = {
        "id": "x", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }  # fmt: skip
    if rng.random() < 0.2:
        whole = {"error": {"message": text(rng) + f" {KEY}", "code": rng.choice((None, 7, "x"))}}
    is_good, raw = sabotaged(rng, [whole])
    is_good &= "choices" in whole
    status = rng.choice((200, 200, 200, 400, 401, 404, 413, 429, 500))
    kind = rng.choice(("application/json", "application/json", "text/html", "text/event-stream"))

    def answer(request: Any) -> Any:
        whole = httpx2.ByteStream(raw[0])
        return httpx2.Response(status, stream=whole, headers={"content-type": kind})

    with answering(answer):
        try:
            reply = _chat_client().reply([Message("user", "Go.")])
        except RuntimeError as error:
            if KEY in str(error):
                raise Loss(f"the key is told: {error}") from None
            if is_good and status == 200 and "json" in kind:
                raise Loss(f"a good answer was refused: {error}") from None
            raise
    if status != 200:
        raise Loss(f"status {status} became the reply {reply}")
    if is_good and reply.text != said:
        raise Loss(f"{said!r} became {reply}")
    if is_good and thought and thought not in repr(reply):
        raise Loss(f"the thought of {message} is not in {reply}")
    if "error" in whole and not is_good and MARK.search(reply.text) is None:
        raise Loss(f"the answer {raw[0][:200]!r} became the reply {reply}")
