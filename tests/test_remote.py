"""Questions over HTTP: limits of time and size, redirects, and no step twice."""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from stepagent.tasks.adapters import remote
from stepagent.tasks.adapters.remote import JsonServer, ServerError
from stepagent.tasks.base import EnvironmentLost

Talk = Callable[[socket.socket, bytes], None]


@contextmanager
def answered(talk: Talk) -> Iterator[tuple[str, list[bytes]]]:
    """A server that is given each connection with its request; its address, and what it heard."""
    heard = list[bytes]()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)

        def one(player: socket.socket) -> None:
            with player:
                request = b""
                while b"\r\n\r\n" not in request:
                    request += player.recv(65536)
                head, _, body = request.partition(b"\r\n\r\n")
                size = re.search(rb"content-length: (\d+)", head.lower())
                while size and len(body) < int(size[1]):
                    body += player.recv(65536)
                request = head + b"\r\n\r\n" + body
                heard.append(request)
                try:
                    talk(player, request)
                except OSError:
                    return

        def run() -> None:
            while True:
                try:
                    player, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=one, args=[player], daemon=True).start()

        threading.Thread(target=run, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", heard


def server(url: str, seconds: float = 20, **headers: str) -> JsonServer:
    return JsonServer(url, timeout_seconds=seconds, headers=headers)


def reply(body: bytes, status: str = "200 OK", *more: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *more, "", ""]
    return "\r\n".join(lines).encode() + body


def drip(player: socket.socket, data: bytes) -> None:
    for byte in data:
        player.sendall(bytes([byte]))
        time.sleep(0.05)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 400,
        reply(b"[" + b" " * 400),
        b"HTTP/1.1 100 C\r\n\r\n" * 20,
    ],
)
@pytest.mark.parametrize("method", ["get", "post"])
def test_a_server_that_sends_a_byte_now_and_then_is_not_waited_for(
    data: bytes, method: str
) -> None:
    with answered(lambda player, _: drip(player, data)) as (url, heard):
        begun = time.monotonic()
        with pytest.raises(EnvironmentLost, match=r"/x: no answer within 0.4 s$"):
            getattr(server(url, 0.4), method)("/x")
        assert time.monotonic() - begun < 5
        assert len(heard) == 1


def test_an_answer_without_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_REPLY_BYTES", 100_000)

    def flood(player: socket.socket, _: bytes) -> None:
        player.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while True:
            player.sendall(b"[" * 65536)

    said = "the answer exceeds 100,000 bytes"
    with answered(flood) as (url, _), pytest.raises(EnvironmentLost, match=said):
        server(url).post("/x")


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 50_000, b"[" * 900 + b"]" * 900])
def test_a_deep_answer_is_one_line(body: bytes) -> None:
    with answered(lambda player, _: player.sendall(reply(body))) as (url, _):
        try:
            found = server(url).post("/x")
        except EnvironmentLost as error:
            assert "the answer is not JSON" in str(error)
        else:
            assert len(remote.quoted(found)) <= 203  # deep, but not too deep to be read


def test_a_question_is_asked_again_but_never_a_step() -> None:
    answers = iter([b"", reply(b"1")])
    with answered(lambda player, _: player.sendall(next(answers))) as (url, heard):
        assert server(url).get("/x") == 1
        assert len(heard) == 2
    with answered(lambda player, _: None) as (url, heard):
        with pytest.raises(EnvironmentLost, match="cannot be reached"):
            server(url).post("/step", {"action": "go"})
        assert len(heard) == 1


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
@pytest.mark.parametrize("place", ["/x/", "{url}/x/", "?y", "x/"])
def test_redirects_on_the_same_server_are_followed(status: str, place: str) -> None:
    def talk(player: socket.socket, request: bytes) -> None:
        is_first = request.startswith(b"POST /x HTTP")
        moved = reply(b"", status, f"Location: {place.format(url=url)}")
        player.sendall(moved if is_first else reply(json.dumps(request.decode()).encode()))

    with answered(talk) as (url, _):
        said = str(server(url, Authorization="Bearer s").post("/x", {"action": "go"}))
        assert said.startswith(f"POST {'/x?y' if place == '?y' else '/x/'} HTTP/1.1")
        assert said.endswith('{"action":"go"}')
        assert "Bearer s" in said


def test_what_a_redirect_shows_instead_is_only_read() -> None:
    def talk(player: socket.socket, request: bytes) -> None:
        is_first = request.startswith(b"POST")
        player.sendall(reply(b"", "303 See Other", "Location: /y") if is_first else reply(b"[2]"))

    with answered(talk) as (url, heard):
        assert server(url).post("/x", {"a": 1}) == [2]
        assert heard[1].startswith(b"GET /y HTTP/1.1")


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("http://evil.example/x", "redirects to another server, 'http://evil.example/x'"),
        ("//localhost/x", "redirects to another server"),
        ("file:///etc/passwd", "redirects to another server"),
        ("http://127.0.0.1:99999999/", "redirects to another server"),
        ("", "redirects to another server"),
        ("/x", "more than 5 redirects"),
    ],
)
def test_other_redirects_are_refused(location: str, said: str) -> None:
    moved = reply(b"", "307 Temporary", f"Location: {location}")
    with (
        answered(lambda player, _: player.sendall(moved)) as (url, _),
        pytest.raises(ServerError, match=f"/x: {said}"),
    ):
        server(url).post("/x")


def test_secrets_stay_with_the_server_that_they_were_given_for() -> None:
    with answered(lambda player, _: player.sendall(reply(b"1"))) as (other, heard):
        moved = reply(b"", "307 Temporary", f"Location: {other}/y")
        with answered(lambda player, _: player.sendall(moved)) as (url, _):
            assert server(url, Authorization="Bearer s").post("/x") == 1
    assert b"Bearer" not in heard[0]


def test_what_a_server_says_cannot_steer_the_terminal() -> None:
    said = reply(b"\x1b[31m\n\x9b", "404 No")
    with (
        answered(lambda player, _: player.sendall(said)) as (url, _),
        pytest.raises(ServerError) as error,
    ):
        server(url).post("/x")
    assert str(error.value).isprintable()
