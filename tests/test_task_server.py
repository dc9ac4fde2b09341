"""A served task: every message and route of OpenEnv's protocol, limits and failures."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGINT
from socket import SHUT_RDWR
from typing import Any

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from corridor import ITEMS, Corridor, CorridorEnv, corridor_task, explorer
from fakes import hear_ctrl_c
from stepagent.tasks.adapters.openenv import OpenEnvConfig, OpenEnvTask
from stepagent.tasks.adapters.remote import ServerError
from stepagent.tasks.base import EnvironmentLost
from stepagent.tasks.data.optional_packages import PackageMissing
from stepagent.tasks.scienceworld.task import ScienceWorld
from stepagent.tasks.serving.server import MAX_REQUEST_BYTES, serve, serving


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(corridor_task(step_limit=5), max_sessions=4) as url:
        yield url


@contextmanager
def session(url: str) -> Iterator[Callable[[Any], dict[str, Any]]]:
    """A function that sends a message and returns the answer; text is sent unchanged."""
    with connection(url) as socket:

        def ask(message: Any) -> dict[str, Any]:
            socket.send(message if isinstance(message, str | bytes) else json.dumps(message))
            answer: dict[str, Any] = json.loads(socket.recv(timeout=20))
            return answer

        yield ask


def connection(url: str, **options: Any) -> ClientConnection:
    return connect(f"ws{url.removeprefix('http')}/ws", proxy=None, **options)


def step(text: str) -> dict[str, Any]:
    return {"type": "step", "data": {"text": text}}


def test_an_episode_on_the_wire(url: str) -> None:
    world, act = Corridor(0), explorer("train/0")
    with session(url) as ask:
        assert ask({"type": "reset", "data": {"item": "train/0", "episode_id": "mine"}}) == {
            "type": "observation",
            "data": {
                "observation": {"text": world.look(), "instruction": "Take the treasure."},
                "reward": None,
                "done": False,
                "metadata": {"item": "train/0", "score": 0.0, "success": False},
            },
        }
        observation, count, done = world.look(), 0, False
        while not done:
            action = act(observation) or ""
            observation, reward, done = world.act(action)
            count += 1
            score = 100 * max(reward, 0.25 if "a treasure" in world.look() else 0)
            assert ask(step(action)) == {
                "type": "observation",
                "data": {
                    "observation": {"text": observation},
                    "reward": reward,
                    "done": done,
                    "metadata": {
                        "score": score, "success": done, "truncated": False, "details": {}
                    },
                },
            }  # fmt: skip
        assert ask({"type": "state"}) == {
            "type": "state",
            "data": {"episode_id": "mine", "step_count": count, "item": "train/0"},
        }


def test_the_item_is_chosen_by_id_place_or_seed(url: str) -> None:
    with session(url) as ask:

        def item(**data: Any) -> str:
            reply = ask({"type": "reset", "data": data})["data"]
            return str(reply["metadata"]["item"])

        assert item(item="dev/2") == "dev/2"
        assert item(split="test", index=3) == "test/3"
        assert item(seed=5) == item(seed=5) in ITEMS["train"]
        assert ask({"type": "reset"})["data"]["metadata"]["item"] in ITEMS["train"]


def test_truncation_is_distinguished_from_termination(url: str) -> None:
    with session(url) as ask:
        ask({"type": "reset", "data": {"item": "train/0"}})
        answers = [ask(step("wait"))["data"] for _ in range(5)]
        assert [answer["done"] for answer in answers] == [False] * 4 + [True]
        assert answers[-1]["metadata"]["truncated"] is True
        error = ask(step("wait"))["data"]
        assert error["code"] == "EXECUTION_ERROR"
        assert "call reset first" in error["message"]


@pytest.mark.parametrize(
    ("message", "code", "said"),
    [
        ("{", "INVALID_JSON", "Invalid JSON"),
        ("[" * 100_000, "INVALID_JSON", "Invalid JSON"),
        ('{"type": "step", "data": {"text": "\\ud800"}}', "INVALID_JSON", "Invalid JSON"),
        (b"\xff\xfe", "INVALID_JSON", "Invalid JSON"),
        ("[]", "VALIDATION_ERROR", "expected an object"),
        ('{"type": "mcp", "data": {}}', "UNKNOWN_TYPE", "Unknown message type: mcp"),
        ('{"data": {}}', "UNKNOWN_TYPE", "Unknown message type: None"),
        ('{"type": ["step"]}', "UNKNOWN_TYPE", "Unknown message type"),
        ('{"type": "step"}', "VALIDATION_ERROR", "Invalid message"),
        ('{"type": "step", "data": "take"}', "VALIDATION_ERROR", "Invalid message"),
        ('{"type": "step", "data": {"text": 3}}', "VALIDATION_ERROR", "Invalid message"),
        ('{"type": "step", "data": {"action": "x"}}', "VALIDATION_ERROR", "Invalid message"),
        ('{"type": "reset", "data": {"itm": "x"}}', "VALIDATION_ERROR", "Invalid message"),
        ('{"type": "reset", "data": {"split": "test"}}', "VALIDATION_ERROR", "Invalid message"),
        ('{"type": "reset", "data": {"seed": -1}}', "VALIDATION_ERROR", "Invalid message"),
        ('{"type": "reset", "data": {"item": "?"}}', "VALIDATION_ERROR", "has no item '?'"),
        (
            '{"type": "reset", "data": {"split": "dev", "index": 3}}',
            "VALIDATION_ERROR",
            "split dev has 3 items; expected an index below that, got 3",
        ),
        ('{"type": "step", "data": {"text": "x"}}', "EXECUTION_ERROR", "send reset first"),
    ],
)
def test_an_invalid_message_gets_an_error_code_and_the_session_continues(
    url: str, message: str | bytes, code: str, said: str
) -> None:
    with session(url) as ask:
        reply = ask(message)
        assert (reply["type"], reply["data"]["code"]) == ("error", code)
        assert said in reply["data"]["message"]
        assert ask({"type": "reset", "data": {"item": "dev/0"}})["type"] == "observation"


def test_a_typed_clients_metadata_is_accepted(url: str) -> None:
    with session(url) as ask:
        ask({"type": "reset", "data": {"item": "dev/0"}})
        message = {"type": "step", "data": {"text": "go east", "metadata": {"by": "test"}}}
        assert ask(message)["type"] == "observation"


def test_a_message_that_is_too_long_ends_the_session(url: str) -> None:
    with connection(url) as socket:
        socket.send(json.dumps(step("x" * MAX_REQUEST_BYTES)))
        with pytest.raises(ConnectionClosed, match="1009"):
            socket.recv(timeout=20)


def test_web_pages_have_no_access(url: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connection(url, origin="http://evil.example")
    assert refused.value.response.status_code == 403


class Watched(CorridorEnv):
    """Counts its instances, and waits or fails if an action says so."""

    opened = 0
    closed = 0
    released = threading.Event()
    began = threading.Event()

    def __init__(self) -> None:
        Watched.opened += 1

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if action == "wait":
            self.began.set()
            self.released.wait(20)
        if action == "lose":
            raise EnvironmentLost("the engine hangs")
        if action == "break":
            raise KeyError("secret")
        if action == "surrogate":
            return "a \udcff b", 0.0, False, False, {}
        return super().step(action)

    def close(self) -> None:
        Watched.closed += 1


@pytest.fixture
def watched() -> Iterator[str]:
    Watched.opened = Watched.closed = 0
    Watched.released.clear()
    Watched.began.clear()
    with serving(corridor_task(Watched), max_sessions=2) as url:
        yield url
        Watched.released.set()


def eventually(condition: Callable[[], bool]) -> bool:
    for _ in range(2000):
        if condition():
            return True
        time.sleep(0.01)
    return False


RESET = {"type": "reset", "data": {"item": "train/0"}}


def test_sessions_play_at_the_same_time_and_their_number_is_limited(watched: str) -> None:
    with session(watched) as slow, session(watched) as quick:
        slow(RESET), quick(RESET)
        waiting = threading.Thread(target=slow, args=[step("wait")])
        waiting.start()
        assert Watched.began.wait(20)
        assert quick(step("go east"))["type"] == "observation"
        with connection(watched) as third:
            error = json.loads(third.recv(timeout=20))["data"]
            assert error["code"] == "CAPACITY_REACHED"
            assert error["message"] == "all 2 sessions are in use"
            with pytest.raises(ConnectionClosed):
                third.recv(timeout=20)
        assert httpx2.post(f"{watched}/reset", json={}).status_code == 503
        Watched.released.set()
        waiting.join()
    assert eventually(lambda: Watched.closed == 2)
    with session(watched) as ask:
        assert ask(RESET)["type"] == "observation"


def test_an_environment_is_closed_when_its_player_leaves_in_the_middle(watched: str) -> None:
    with connection(watched) as socket:
        socket.send(json.dumps(RESET))
        socket.recv(timeout=20)
        socket.send(json.dumps(step("wait")))
        assert Watched.began.wait(20)
        socket.socket.shutdown(SHUT_RDWR)  # without a close message
    assert Watched.closed == 0
    Watched.released.set()
    assert eventually(lambda: Watched.closed == 1)


def test_a_close_message_closes_the_environment(watched: str) -> None:
    with connection(watched) as socket:
        socket.send(json.dumps(RESET))
        socket.recv(timeout=20)
        socket.send(json.dumps({"type": "close"}))
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=20)
    assert eventually(lambda: Watched.closed == 1)


def test_failures_of_the_environment_are_reported_without_details(
    watched: str, caplog: pytest.LogCaptureFixture
) -> None:
    with session(watched) as ask:
        ask(RESET)
        lost = ask(step("lose"))["data"]
        assert (lost["code"], lost["message"]) == ("EXECUTION_ERROR", "the engine hangs")
        ask(RESET)
        broken = ask(step("break"))["data"]
        assert broken["code"] == "EXECUTION_ERROR"
        assert "KeyError" in broken["message"]
        assert "secret" not in broken["message"]
        assert "secret" in caplog.text
        ask(RESET)
        assert ask(step("surrogate"))["data"]["observation"] == {"text": "a ? b"}


def test_http_describes_the_environment(url: str) -> None:
    with httpx2.Client(base_url=url) as http:
        assert http.get("/health").json() == {"status": "healthy"}
        assert http.get("/state").json() == {"episode_id": None, "step_count": 0, "item": None}
        metadata = http.get("/metadata").json()
        assert metadata["name"] == "corridor"
        assert '"step_limit": 5' in metadata["readme_content"]
        schema = http.get("/schema").json()
        # Players with text actions look for the required field.
        assert schema["action"]["required"] == ["text"]
        assert schema["action"]["title"] == "TextAction"
        assert schema["observation"]["required"] == ["text"]
        assert sorted(schema["reset_observation"]["required"]) == ["instruction", "text"]
        assert http.get("/openapi.json").json()["info"]["version"] == "1.0.0"
        assert http.post("/mcp", json={}).json()["error"]["code"] == -32601


def test_http_resets_but_cannot_step(url: str) -> None:
    with httpx2.Client(base_url=url) as http:
        assert http.post("/reset").json()["done"] is False
        first = http.post("/reset", json={"item": "dev/1"}).json()
        assert first["observation"]["text"] == Corridor(101).look()
        assert http.post("/reset", json={"item": "nothing"}).status_code == 422
        assert http.post("/reset", json={"unknown": 1}).status_code == 422
        refused = http.post("/step", json={"action": {"text": "go east"}})
        assert (refused.status_code, "/ws" in refused.text) == (409, True)
        assert http.post("/step", json={"action": {}}).status_code == 422


def test_the_task_api_lists_the_items(url: str) -> None:
    with httpx2.Client(base_url=url) as http:
        assert http.get("/list_environments").json() == ["corridor"]
        assert http.get("/corridor/splits").json() == [
            {"name": "train", "type": "train"},
            {"name": "dev", "type": "validation"},
            {"name": "test", "type": "test"},
        ]
        listed = http.post("/corridor/tasks", json={"split": "dev"}).json()
        assert listed == {
            "tasks": [
                {"id": f"dev/{n}", "group": "dev", "split": "dev", "index": n} for n in range(3)
            ],
            "env_name": "corridor",
        }
        assert http.post("/corridor/num_tasks", json={"split": "train"}).json() == {"num_tasks": 8}
        one = http.post("/corridor/task", json={"split": "test", "index": 3})
        assert one.json()["task"]["id"] == "test/3"
        assert http.post("/corridor/task", json={"split": "test", "index": 4}).status_code == 400
        some = http.post("/corridor/task_range", json={"split": "train", "start": -2}).json()
        assert [(t["id"], t["index"]) for t in some["tasks"]] == [("train/6", 6), ("train/7", 7)]
        assert http.post("/corridor/tasks", json={"split": "all"}).status_code == 422
        assert http.get("/other/splits").status_code == 404


def test_a_body_that_is_too_long_is_refused(url: str) -> None:
    body = json.dumps({"item": "x" * MAX_REQUEST_BYTES}).encode()
    assert httpx2.post(f"{url}/reset", content=body).status_code == 413


def test_the_server_is_on_loopback_and_ends_with_its_block() -> None:
    with serving(corridor_task()) as url:
        assert url.startswith("http://127.0.0.1:")
        httpx2.get(f"{url}/health").raise_for_status()
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{url}/health")


def test_a_benchmark_is_served_as_it_is() -> None:
    original = ScienceWorld(["find-plant"], step_limit=30)
    demonstration = original.expert("find-plant/4")
    with serving(original) as url:
        served = OpenEnvTask(OpenEnvConfig(url=url))
        assert served.items("dev") == original.items("dev")
        assert served.group("find-plant/4") == "find-plant"
        env = served.make_env()
        observation, info = env.reset(options={"item": "find-plant/4"})
        assert info["instruction"] == demonstration.instruction
        for step in demonstration.steps:
            assert observation == step.observation
            observation, reward, terminated, _, info = env.step(step.action)
            assert reward == step.reward
        assert (observation, terminated) == (demonstration.final_observation, True)
        assert (info["score"], info["success"]) == (100, True)
        served.close()
    original.close()


def test_a_taken_port_is_one_line() -> None:
    with serving(corridor_task()) as url:
        port = int(url.rpartition(":")[2])
        with pytest.raises(ServerError, match=rf"^127.0.0.1:{port}: cannot listen there: Address"):
            serve(corridor_task(), announce=print, port=port)
    with pytest.raises(ServerError, match=r"^127.0.0.1:99999: cannot listen there: "):
        serve(corridor_task(), announce=print, port=99999)


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "websockets"])
def test_a_missing_package_is_one_line(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for loaded in [name for name in sys.modules if name.startswith("stepagent.tasks.serving.")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PackageMissing, match=rf"^this needs the package {package}; "):
        serve(corridor_task(), announce=print)


def test_the_command_serves_until_an_interrupt() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from corridor import corridor_task\n"
        "from stepagent import cli\n"
        "from stepagent.commands import serve\n"
        "serve.open_task = lambda config: corridor_task()\n"
        "cli.main(['serve', 'scienceworld', '--port', '0'])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,
    ) as process:
        assert process.stdout is not None
        name, url = process.stdout.readline().removesuffix(", until Ctrl-C\n").split(" at ")
        assert name == corridor_task().name
        with session(url) as ask:
            assert ask({"type": "reset", "data": {"item": "dev/0"}})["type"] == "observation"
        process.send_signal(SIGINT)
        _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "stepagent: stopped\n")
