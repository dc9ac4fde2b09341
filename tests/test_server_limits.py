"""A served task with silent, slow and verbose clients, and with clients without access."""

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from corridor import corridor_task
from stepagent.cli import main
from stepagent.commands import serve as command
from stepagent.tasks.adapters.openenv import OpenEnvConfig, OpenEnvTask
from stepagent.tasks.adapters.remote import ServerError
from stepagent.tasks.base import EnvironmentLost
from stepagent.tasks.serving import protocol as server_protocol
from stepagent.tasks.serving import seats as server_seats
from stepagent.tasks.serving.server import MAX_REQUEST_BYTES, Access, serve, serving

RESET = {"type": "reset", "data": {"item": "train/0"}}
TOKEN = "c0rrect-h0rse"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(corridor_task(), max_sessions=4) as url:
        yield url


def connection(url: str, **options: Any) -> ClientConnection:
    return connect(f"ws{url.removeprefix('http')}/ws", proxy=None, **options)


def asked(player: ClientConnection, message: Any) -> dict[str, Any]:
    player.send(message if isinstance(message, str) else json.dumps(message))
    answer: dict[str, Any] = json.loads(player.recv(timeout=20))
    return answer


def raw(url: str, data: bytes) -> socket.socket:
    """A connection on which these bytes were sent."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    opened = socket.create_connection((host, int(port)), timeout=20)
    opened.sendall(data)
    return opened


def test_silent_sessions_give_up_their_seats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_seats, "SILENT_SECONDS", 0.3)
    with (
        serving(corridor_task(), max_sessions=2) as url,
        connection(url) as silent,
        connection(url) as playing,
    ):
        assert asked(playing, RESET)["type"] == "observation"
        with connection(url) as newcomer:
            assert asked(newcomer, RESET)["type"] == "observation"
            assert json.loads(silent.recv(timeout=20))["data"]["code"] == "SESSION_ERROR"
            assert asked(playing, {"type": "state"})["data"]["item"] == "train/0"
            with connection(url) as late:  # sessions that play keep their seats
                said = json.loads(late.recv(timeout=20))["data"]
                assert said["code"] == "CAPACITY_REACHED"


def test_an_idle_session_is_closed() -> None:
    with serving(corridor_task(), max_sessions=1, idle_seconds=0.3) as url:
        with connection(url) as player:
            asked(player, RESET)
            said = json.loads(player.recv(timeout=20))["data"]
            assert (said["code"], "was idle for too long" in said["message"]) == (
                "SESSION_ERROR",
                True,
            )
            with pytest.raises(ConnectionClosed, match="1008"):
                player.recv(timeout=20)
        with connection(url) as player:
            assert asked(player, RESET)["type"] == "observation"


@pytest.mark.parametrize(
    "half",
    [
        b"",
        b"GET /hea",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ",
        b"POST /reset HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /health HT",
        b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n",
    ],
)
def test_a_request_that_is_never_finished_is_ended(
    half: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_protocol, "REQUEST_SECONDS", 0.3)
    with serving(corridor_task()) as url, raw(url, half) as slow:
        received = b"".join(iter(lambda: _received(slow), b""))
        assert (b"200 OK" in received) == (half.count(b"GET") == 2)
        httpx2.get(f"{url}/health").raise_for_status()


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(4096)
    except ConnectionResetError:
        return b""


def test_a_request_that_trickles_in_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_protocol, "REQUEST_SECONDS", 0.5)
    with (
        serving(corridor_task()) as url,
        raw(url, b"GET /health HTTP/1.1\r\n") as slow,
        pytest.raises(OSError),
    ):
        for _ in range(200):
            slow.sendall(b"X: y\r\n")
            time.sleep(0.05)


LONG = "x" * (MAX_REQUEST_BYTES - 1000)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/reset", {"item": LONG}),
        ("/reset", {LONG: 1}),
        ("/reset", {str(n): 1 for n in range(50_000)}),
        ("/reset", {"seed": LONG}),
        ("/reset", [LONG]),
        ("/step", {"action": {"text": 1, LONG: 2}}),
        ("/corridor/tasks", {"split": LONG}),
        ("/corridor/task", {"split": "train", "index": LONG}),
        ("/reset", '{"item": "' + LONG),
        ("/reset", "[" * 1_000_000),
        ("/reset", '{"a":' * 200_000),
        ("/corridor/tasks", '{"split": ' + "[" * 500_000 + "]" * 500_000 + "}"),
    ],
)
def test_a_long_request_gets_a_short_answer(url: str, path: str, body: Any) -> None:
    content = body if isinstance(body, str) else json.dumps(body)
    answer = httpx2.post(
        f"{url}{path}", content=content, headers={"Content-Type": "application/json"}
    )
    assert 400 <= answer.status_code < 500
    assert len(answer.content) < 1500


@pytest.mark.parametrize(
    "message",
    [
        {"type": LONG},
        {"type": [LONG]},
        {"type": "reset", "data": {"item": LONG}},
        {"type": "reset", "data": {LONG: 1}},
        {"type": "reset", "data": {str(n): 1 for n in range(50_000)}},
        {"type": "step", "data": {"text": {"a": LONG}}},
        {"type": "step", "data": [LONG]},
        '{"type": "step", "data": ' + "[" * 900_000,
        '{"type": ' + "[" * 400_000 + "]" * 400_000 + "}",
        '{"type": "' + LONG,
    ],
)
def test_a_long_message_gets_a_short_answer(url: str, message: Any) -> None:
    with connection(url) as player:
        answer = asked(player, message)
        assert answer["type"] == "error"
        assert len(json.dumps(answer)) < 1500
        assert asked(player, RESET)["type"] == "observation"


@pytest.mark.parametrize("is_chunked", [True, False])
def test_a_body_beyond_the_limit_is_refused(url: str, is_chunked: bool) -> None:
    pieces = [b"x" * 2**16] * 32
    content: Any = iter(pieces) if is_chunked else b"".join(pieces)
    assert httpx2.post(f"{url}/reset", content=content).status_code == 413


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_beyond_this_machine_a_token_is_required(
    host: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ServerError, match="others can reach this address; give a token"):
        serve(corridor_task(), announce=print, host=host, port=0)
    with contextlib.suppress(ServerError):  # a machine without IPv6
        with serving(corridor_task(), host=host, access=Access(is_open=True)):
            assert "anybody who reaches this address can play" in caplog.text
        caplog.clear()
        with serving(corridor_task(), host=host, access=Access(TOKEN)):
            assert caplog.text == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
def test_this_machine_needs_no_token(host: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with serving(corridor_task(), host=host) as url:
        httpx2.get(f"{url}/health").raise_for_status()
    assert caplog.text == ""


BASIC = httpx2.BasicAuth("player", TOKEN)


def test_only_clients_with_the_token_may_play(caplog: pytest.LogCaptureFixture) -> None:
    with serving(corridor_task(), access=Access(TOKEN)) as url:
        for given in (
            None,
            "Bearer wrong",
            f"Bearer {TOKEN}x",
            "Bearer",
            f"Basic {TOKEN}",
            "B \xff",
        ):
            headers = {} if given is None else {"Authorization": given.encode("latin-1")}
            for path in ("/health", "/metadata", "/docs", "/nothing"):
                answer = httpx2.get(f"{url}{path}", headers=headers)
                assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
                assert "corridor" not in answer.text
        with pytest.raises(InvalidStatus) as refused:
            connection(url)
        assert refused.value.response.status_code == 401
        assert "handshake" not in caplog.text
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        httpx2.get(f"{url}/health", headers=bearer).raise_for_status()
        httpx2.get(f"{url}/health", auth=BASIC).raise_for_status()
        httpx2.get(f"{url}/health", params={"token": TOKEN}).raise_for_status()
        assert httpx2.get(f"{url}/health", params={"token": "wrong"}).status_code == 401
        with connection(url, additional_headers=bearer) as player:
            assert asked(player, RESET)["type"] == "observation"
        # OpenEnv's own client accepts only a URL.
        with connection(url.replace("//", f"//player:{TOKEN}@")) as player:
            assert asked(player, RESET)["type"] == "observation"
        task = OpenEnvTask(OpenEnvConfig(url=url), headers=bearer)
        assert len(task.items("train")) == 8
        with pytest.raises((ServerError, EnvironmentLost), match="401"):
            OpenEnvTask(OpenEnvConfig(url=url)).items("train")


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:80", "10.0.0.1", "[", ""])
def test_dns_rebinding_is_refused(url: str, host: str) -> None:
    answer = httpx2.post(f"{url}/reset", headers={"Host": host}, json={})
    assert answer.status_code in (400, 403)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "[::1]:9"])
def test_this_machine_has_several_names(url: str, host: str) -> None:
    httpx2.get(f"{url}/health", headers={"Host": host}).raise_for_status()


def test_the_command_takes_the_token_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Access] = []
    monkeypatch.setattr(command, "open_task", lambda config: corridor_task())
    monkeypatch.setattr(command, "serve", lambda task, *, access, **_: asked.append(access))
    monkeypatch.delenv(command.TOKEN, raising=False)
    main(["serve", "scienceworld"])
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    main(["serve", "scienceworld", "--token-file", str(tmp_path / "token")])
    main(["serve", "scienceworld", "--without-token"])
    monkeypatch.setenv(command.TOKEN, "another")
    main(["serve", "scienceworld"])
    assert asked == [Access(), Access(TOKEN), Access(is_open=True), Access("another")]
    monkeypatch.setenv(command.TOKEN, "two words")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").write_text("\n")
    for options, said in (
        ([], "STEPAGENT_TOKEN: expected a token of printable ASCII"),
        (["--token-file", str(tmp_path / "empty")], "empty: expected a token of printable ASCII"),
        (["--token-file", str(tmp_path / "pipe")], "pipe: a named pipe; expected a regular file"),
        (["--idle-seconds", "0"], "--idle-seconds must be above 0, not 0"),
    ):
        with pytest.raises(SystemExit):
            main(["serve", "scienceworld", *options])
        assert said in capsys.readouterr().err


def test_the_command_refuses_an_open_address(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "scienceworld", "--host", "0.0.0.0", "--port", "0"])
    assert "0.0.0.0: others can reach this address; give a token" in capsys.readouterr().err
