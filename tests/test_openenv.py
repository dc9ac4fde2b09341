"""OpenEnv servers as tasks: whole episodes, other field names, and everything that can go wrong."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socket import SHUT_RDWR, create_server
from typing import Any

import gymnasium as gym
import httpx2
import pytest
from fastapi import FastAPI
from starlette.responses import Response, StreamingResponse
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as serve_websocket

from corridor import ITEMS, CorridorEnv, corridor_task, explorer, running
from stepagent.tasks.adapters.foreign import Items
from stepagent.tasks.adapters.openenv import OpenEnvConfig, OpenEnvTask
from stepagent.tasks.adapters.remote import ServerError
from stepagent.tasks.adapters.scoring import Scoring
from stepagent.tasks.base import EnvironmentLost
from stepagent.tasks.data.optional_packages import PackageMissing
from stepagent.tasks.serving.server import serving

ONE: Items = {"train": {"only": {"seed": 3}}}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(corridor_task()) as url:
        yield url


def test_a_served_task_is_the_task_itself(url: str) -> None:
    served, original = OpenEnvTask(OpenEnvConfig(url=url), expert=explorer), corridor_task()
    for split in ("train", "dev", "test"):
        assert served.items(split) == list(ITEMS[split])
    assert served.group("dev/1") == original.group("dev/1") == "dev"
    assert served.expert("dev/1") == original.expert("dev/1").model_copy(update={"task": "openenv"})
    served.close()


def test_a_limit_of_the_server_truncates_here_too() -> None:
    with serving(corridor_task(step_limit=2)) as url:
        env = OpenEnvTask(OpenEnvConfig(url=url)).make_env()
        env.reset(options={"item": "train/0"})
        assert env.step("wait")[2:4] == (False, False)
        assert env.step("wait")[2:4] == (False, True)
        with pytest.raises(gym.error.ResetNeeded):
            env.step("wait")
        env.close()


def test_closing_the_task_ends_the_sessions_of_its_environments() -> None:
    with serving(corridor_task(), max_sessions=2) as url:
        task = OpenEnvTask(OpenEnvConfig(url=url))
        envs = [task.make_env(), task.make_env()]
        for env in envs:
            env.reset(options={"item": "train/0"})
        third = OpenEnvTask(OpenEnvConfig(url=url)).make_env()
        with pytest.raises(EnvironmentLost, match=r"'CAPACITY_REACHED': 'all 2 sessions are in"):
            third.reset(options={"item": "train/0"})
        task.close()
        with pytest.raises(gym.error.ResetNeeded):
            envs[0].step("take")
        third.reset(options={"item": "train/0"})
        third.close()


class Losing(CorridorEnv):
    """Loses its engine at the first action of its life."""

    losses = 0

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if not Losing.losses:
            Losing.losses += 1
            raise EnvironmentLost("the engine hangs")
        return super().step(action)


def test_what_is_lost_there_is_lost_here_and_can_be_begun_again() -> None:
    with serving(corridor_task(Losing)) as url:
        env = OpenEnvTask(OpenEnvConfig(url=url)).make_env()
        start = env.reset(options={"item": "train/0"})
        with pytest.raises(EnvironmentLost, match="EXECUTION_ERROR': 'the engine hangs'"):
            env.step("wait")
        with pytest.raises(gym.error.ResetNeeded):
            env.step("wait")
        assert env.reset(options={"item": "train/0"}) == start
        assert env.step("wait")[0] == "You cannot do that."
        env.close()


def test_a_server_that_goes_and_comes_back() -> None:
    with serving(corridor_task()) as url:
        port = int(url.rpartition(":")[2])
        task = OpenEnvTask(OpenEnvConfig(url=url), items=ITEMS)
        env = task.make_env()
        env.reset(options={"item": "train/0"})
    with pytest.raises(EnvironmentLost, match="the session was lost"):
        env.step("take")
    with pytest.raises(EnvironmentLost, match=r"cannot be reached .*; is the server running\?$"):
        env.reset(options={"item": "train/0"})
    with serving(corridor_task(), port=port):
        env.reset(options={"item": "train/0"})
        env.close()


# Servers of others, scripted.


@contextmanager
def scripted(
    answer: Callable[[ServerConnection, dict[str, Any]], Any], *, timeout_seconds: float = 20.0
) -> Iterator[OpenEnvTask]:
    """A task on a server that answers messages as it is told; what it returns is sent."""

    def talk(socket: ServerConnection) -> None:
        for message in socket:
            said = answer(socket, json.loads(message))
            if said is not None:
                socket.send(said if isinstance(said, str | bytes) else json.dumps(said))

    with serve_websocket(talk, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.socket.getsockname()[1]
        config = OpenEnvConfig(url=f"http://127.0.0.1:{port}", timeout_seconds=timeout_seconds)
        task = OpenEnvTask(config, items=ONE)
        yield task
        task.close()


def observed(
    observation: Any, *, reward: Any = None, done: Any = False, metadata: Any = None
) -> dict[str, Any]:
    data = {"observation": observation, "reward": reward, "done": done}
    return {"type": "observation", "data": data if metadata is None else data | metadata}


FIRST = observed({"text": "hello", "instruction": "Speak."})


def error(code: str, **more: Any) -> dict[str, Any]:
    return {"type": "error", "data": {"message": "no\nway", "code": code, **more}}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("INVALID_JSON", ServerError),
        ("UNKNOWN_TYPE", ServerError),
        ("VALIDATION_ERROR", ServerError),
        ("EXECUTION_ERROR", EnvironmentLost),
        ("CAPACITY_REACHED", EnvironmentLost),
        ("FACTORY_ERROR", EnvironmentLost),
        ("SESSION_ERROR", EnvironmentLost),
        ("NEW_IN_2027", EnvironmentLost),
    ],
)
def test_error_codes_are_lost_episodes_or_refusals(code: str, expected: type[Exception]) -> None:
    with scripted(lambda socket, message: error(code)) as task:
        with pytest.raises(expected) as raised:
            task.make_env().reset(options={"item": "only"})
        said = str(raised.value)
        assert said == f"{task.server.url}: reset failed with '{code}': 'no\\nway'"


def test_what_was_wrong_with_a_message_is_repeated() -> None:
    errors = [{"loc": ["message"], "msg": "Field required"}]
    with (
        scripted(lambda socket, message: error("VALIDATION_ERROR", errors=errors)) as task,
        pytest.raises(ServerError, match="Field required"),
    ):
        task.make_env().reset(options={"item": "only"})


def hang_up(socket: ServerConnection, message: Any) -> None:
    socket.close()


def cut(socket: ServerConnection, message: Any) -> None:
    socket.socket.shutdown(SHUT_RDWR)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("garbage", r"the answer is not JSON: 'garbage'"),
        ("[" * 100_000, r"the answer is not JSON"),
        (b"\x00\x01", r"the answer is not JSON"),
        ([], r"not an answer of OpenEnv: \[\]"),
        ({"type": "observation"}, r"not an answer of OpenEnv"),
        ({"type": "state", "data": {}}, r"not an answer of OpenEnv"),
        ({"type": "error", "data": "no"}, r"not an answer of OpenEnv"),
        (observed("hi"), r"the observation is not an object: 'hi'"),
        (observed({"text": 3}), r"field 'text' of the observation is not text but int"),
        (observed({"text": "x" * 1_000_001}), r"1,000,001 characters, more than 1,000,000"),
        (observed({"text": "hi"}, reward="much"), r"the reward is not a number: 'much'"),
        (
            '{"type":"observation","data":{"observation":{"text":"a"},"reward":NaN}}',
            r"not a number",
        ),
        ("x" * (16 * 2**20 + 1), r"the session was lost \('.*1009"),
        (hang_up, r"the session was lost"),
        (cut, r"the session was lost"),
    ],
    ids=lambda value: None if callable(value) else str(value)[:40],
)
def test_an_answer_that_cannot_be_used_loses_the_episode(reply: Any, reason: str) -> None:
    def answer(socket: ServerConnection, message: dict[str, Any]) -> Any:
        if message["type"] == "reset":
            return FIRST
        return reply(socket, message) if callable(reply) else reply

    with scripted(answer) as task:
        env = task.make_env()
        env.reset(options={"item": "only"})
        with pytest.raises(EnvironmentLost, match=reason) as raised:
            env.step("hi")
        assert len(str(raised.value)) < 500
        assert "\n" not in str(raised.value)
        env.reset(options={"item": "only"})


def test_an_answer_that_does_not_come_loses_the_episode() -> None:
    def answer(socket: ServerConnection, message: dict[str, Any]) -> Any:
        return FIRST if message["type"] == "reset" else None

    with scripted(answer, timeout_seconds=2.0) as task:
        env = task.make_env()
        env.reset(options={"item": "only"})
        with pytest.raises(EnvironmentLost, match="no answer within 2 s"):
            env.step("hi")
        env.reset(options={"item": "only"})


def test_an_episode_gets_what_the_item_says_and_reads_what_the_config_says() -> None:
    heard: list[dict[str, Any]] = []

    def answer(socket: ServerConnection, message: dict[str, Any]) -> Any:
        heard.append(message)
        seen = {"messages": [{"content": "You say"}, {"content": "hello"}], "prompt": "Guess."}
        return observed(seen, reward=None if message["type"] == "reset" else 0.5)

    with scripted(answer) as task:
        config = OpenEnvConfig(
            url=task.server.url,
            action="message",
            observation="messages",
            instruction="prompt",
            scoring=Scoring(of="sum", best=2),
        )
        env = OpenEnvTask(config, items=ONE).make_env()
        observation, info = env.reset(options={"item": "only"})
        assert (observation, info["instruction"]) == ("You say\nhello", "Guess.")
        assert env.step("a \ud800")[4]["score"] == 25
        assert env.step("b")[4]["score"] == 50
        env.close()
    assert heard[:2] == [
        {"type": "reset", "data": {"seed": 3}},
        {"type": "step", "data": {"message": "a ?"}},
    ]
    assert heard[-1] == {"type": "close"}


def test_rewards_that_are_missing_or_true_are_numbers() -> None:
    rewards = iter([None, True])

    def answer(socket: ServerConnection, message: dict[str, Any]) -> Any:
        return (
            FIRST if message["type"] == "reset" else observed({"text": "x"}, reward=next(rewards))
        )

    with scripted(answer) as task:
        config = OpenEnvConfig(url=task.server.url, scoring=Scoring(of="sum"))
        env = OpenEnvTask(config, items=ONE).make_env()
        env.reset(options={"item": "only"})
        assert [env.step("x")[1] for _ in range(2)] == [0.0, 1.0]
        env.close()


def test_a_field_that_is_not_there_is_named_with_those_that_are() -> None:
    with scripted(lambda socket, message: observed({"prompt": "?", "turn": 1})) as task:
        with pytest.raises(ServerError) as raised:
            task.make_env().reset(options={"item": "only"})
        assert str(raised.value) == (
            f"{task.server.url}: only: no field 'text' in the observation, which has: "
            "['prompt', 'turn']; see OpenEnvConfig"
        )


def test_a_fixed_instruction_needs_no_field() -> None:
    with scripted(lambda socket, message: observed({"text": "hello"})) as task:
        config = OpenEnvConfig(url=task.server.url, fixed_instruction="Speak.")
        env = OpenEnvTask(config, items=ONE).make_env()
        assert env.reset(options={"item": "only"})[1]["instruction"] == "Speak."
        env.close()


KEY = "name the key of the score (--score-key)"


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({}, f"no 'score' in the info, which has: nothing; {KEY}"),
        ({"a\nb": 1, "won": 0}, rf"no 'score' in the info, which has: ['a\nb', 'won']; {KEY}"),
        ({"score": "much"}, "'score' in the info is not a number: 'much'"),
    ],
    ids=["nothing", "others", "text"],
)
def test_a_server_without_scores_is_refused_at_the_first_action(
    metadata: dict[str, Any], reason: str
) -> None:
    sockets: list[ServerConnection] = []

    def answer(socket: ServerConnection, message: dict[str, Any]) -> Any:
        sockets.append(socket)
        seen = {"text": "hello", "instruction": "Speak."}
        return observed(seen, metadata={"metadata": metadata})

    with scripted(answer) as task:
        env = task.make_env()
        env.reset(options={"item": "only"})
        with pytest.raises(ServerError) as raised:
            env.step("hi")
        assert str(raised.value) == f"{task.server.url}: {reason}"
        env.reset(options={"item": "only"})
        assert sockets[0] is not sockets[-1]  # the session was ended


@contextmanager
def answering(reply: Response | None, requests: list[str] | None = None) -> Iterator[str]:
    """A server that gives the same answer to everything."""
    app = FastAPI()

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    def everything(path: str) -> Any:
        if requests is not None:
            requests.append(path)
        return reply

    with running(app) as url:
        yield url


def test_a_server_that_is_none_of_openenv_is_one_line() -> None:
    with answering(Response("<html>hi</html>", 404)) as url:
        task = OpenEnvTask(OpenEnvConfig(url=url), items=ONE)
        with pytest.raises(ServerError, match=r"^ws.*/ws: error 403; it is not an OpenEnv server"):
            task.make_env().reset(options={"item": "only"})
        asked = OpenEnvTask(OpenEnvConfig(url=url))
        with pytest.raises(
            ServerError,
            match=r"/list_environments: error 404; it says: '<html>hi</html>'; "
            r"the server lists no items: give them as items=$",
        ):
            asked.items("train")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"hello", "the answer is not JSON"),
        (b'"\\ud800', "the answer is not JSON"),
        (b"[" * 100_000, "the answer is not JSON"),
        (b" " * (16 * 2**20 + 1), "exceeds 16,777,216 bytes"),
    ],
    ids=["text", "surrogate", "nested", "long"],
)
def test_an_http_answer_that_cannot_be_read_is_one_line(body: bytes, reason: str) -> None:
    with answering(Response(body)) as url, pytest.raises(EnvironmentLost, match=reason):
        OpenEnvTask(OpenEnvConfig(url=url)).items("train")


@pytest.mark.parametrize("body", [b"{}", b"[]", b"[3]", b'["a","b"]', b"null"])
def test_an_environment_without_a_name_lists_no_items(body: bytes) -> None:
    with answering(Response(body)) as url, pytest.raises(ServerError, match="give them as items="):
        OpenEnvTask(OpenEnvConfig(url=url)).items("train")


def test_names_of_a_server_are_no_paths() -> None:
    requests: list[str] = []
    with (
        answering(Response(b'["../x?y#z"]'), requests) as url,
        pytest.raises(ServerError, match="give them as items="),
    ):
        OpenEnvTask(OpenEnvConfig(url=url)).items("train")
    assert requests == ["list_environments", "../x?y#z/splits"]


def listing(tasks: dict[str, list[Any]]) -> FastAPI:
    """The Task API with these tasks by split."""
    app = FastAPI()
    types = {"train": "train", "eval": "validation", "test": "test"}

    @app.get("/list_environments")
    def environments() -> list[str]:
        return ["game"]

    @app.get("/game/splits")
    def splits() -> list[dict[str, str]]:
        return [{"name": split, "type": types[split]} for split in tasks]

    @app.post("/game/tasks")
    def listed(body: dict[str, str]) -> dict[str, Any]:
        return {"tasks": tasks[body["split"]], "env_name": "game"}

    return app


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        (
            {"train": [{"id": "a"}, {"id": "b"}], "eval": [{"id": "c"}]},
            {"train": ["a", "b"], "dev": ["c"], "test": []},
        ),
        (
            {"train": [{"id": "0"}, {"id": "1"}], "test": [{"id": "0"}]},
            {"train": ["train/0", "train/1"], "dev": [], "test": ["test/0"]},
        ),
        ({"eval": ["question", 7]}, {"train": [], "dev": ["eval/0", "eval/1"], "test": []}),
    ],
    ids=["ids", "ids-that-repeat", "no-ids"],
)
def test_items_are_called_by_their_ids_if_these_are_names(
    tasks: dict[str, list[Any]], expected: dict[str, list[str]]
) -> None:
    with running(listing(tasks)) as url:
        task = OpenEnvTask(OpenEnvConfig(url=url))
        assert {split: task.items(split) for split in ("train", "dev", "test")} == expected  # type: ignore[arg-type]


def test_a_place_in_a_split_is_what_such_an_item_is_reset_with() -> None:
    with running(listing({"train": [{"id": "a"}, {"id": "b", "group": "odd"}]})) as url:
        task = OpenEnvTask(OpenEnvConfig(url=url))
        assert task.arguments("b") == {"split": "train", "index": 1}
        assert (task.group("a"), task.group("b")) == ("openenv", "odd")


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://a", "http://", "http://a:b", "http://me:key@a", "//a", "x"]
)
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ServerError, match=r"not the address of a server; expected one like http"):
        OpenEnvTask(OpenEnvConfig(url=url))


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "websockets", None)
    with pytest.raises(PackageMissing) as raised:
        OpenEnvTask(OpenEnvConfig(), items=ONE).make_env()
    assert str(raised.value) == (
        "this needs the package websockets; install it: pip install 'stepagent[openenv]'"
    )


def test_headers_reach_the_server() -> None:
    heard: list[Any] = []

    def answer(socket: ServerConnection, message: dict[str, Any]) -> Any:
        assert socket.request is not None
        heard.append(socket.request.headers.get("Authorization"))
        return FIRST

    with scripted(answer) as task:
        env = OpenEnvTask(task.config, items=ONE, headers={"Authorization": "Bearer x"}).make_env()
        env.reset(options={"item": "only"})
        env.close()
    assert heard[0] == "Bearer x"


def test_a_server_that_takes_no_connections_in_time_loses_the_episode() -> None:
    with create_server(("127.0.0.1", 0)) as silent:
        config = OpenEnvConfig(
            url=f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_seconds=0.2
        )
        with pytest.raises(EnvironmentLost, match=r"cannot be reached \('timed out"):
            OpenEnvTask(config, items=ONE).make_env().reset(options={"item": "only"})
        with pytest.raises(EnvironmentLost, match=r"list_environments: no answer within 0.2 s"):
            OpenEnvTask(config).items("train")


def test_an_answer_that_drips_is_not_waited_for() -> None:
    def drip() -> Iterator[bytes]:
        for _ in range(60):
            yield b" "
            time.sleep(0.1)

    with answering(StreamingResponse(drip())) as url:
        config = OpenEnvConfig(url=url, timeout_seconds=0.5)
        with pytest.raises(EnvironmentLost, match=r"list_environments: no answer within 0.5 s"):
            OpenEnvTask(config).items("train")


def test_no_proxy_is_asked_about_this_machine(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "all_proxy", "ws_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(url)
    task = OpenEnvTask(OpenEnvConfig(url=url), expert=explorer)
    assert task.expert("train/0").success
    task.close()
