"""A scripted chat completions server on loopback."""

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SHUT_RDWR
from types import MappingProxyType, TracebackType
from typing import Any

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Say:
    """A valid answer; each counts 10 prompt tokens and 2 completion tokens."""

    text: str | list[dict[str, Any]] | None
    finish_reason: str | None = "stop"
    more: dict[str, Any] = field(default_factory=dict)
    """Other fields of the message."""


@dataclass(frozen=True)
class Refuse:
    """An error with a status and message."""

    status: int
    message: str = "no"
    code: str | None = None


@dataclass(frozen=True)
class Send:
    """An answer of arbitrary bytes."""

    body: bytes
    content_type: str = "application/json"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Reset:
    """Closes the connection without an answer."""


@dataclass(frozen=True)
class Drip:
    """Sends the same piece repeatedly, with a pause in seconds, until the client leaves."""

    piece: bytes
    pause: float = 0.0
    is_header: bool = False
    """Whether the pieces are header lines, so that the body never starts."""


Answer = Say | Refuse | Send | Reset | Drip


def solve_boxes(messages: Messages) -> Say:
    """The expert's action in the world of boxes, with a thought."""
    tasks = [m["content"] for m in messages if "Your task: Fetch" in m["content"]]
    target = re.findall(r"Fetch the (\w+)\.", tasks[-1])[-1]
    found = re.search(rf"The (\w+) box holds a {target}\.", messages[-1]["content"])
    action = f"open {found[1]} box" if found else "go on"
    return Say(f"Thought: I want the {target}.\nAction: {action}")


@dataclass
class ChatServer:
    """Gives the answers of the script first, then those of `answer`; `with` starts and stops it."""

    answer: Callable[[Messages], Answer] = solve_boxes
    script: list[Answer] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Request bodies, in order of arrival."""
    keys: list[str] = field(default_factory=list)
    """The `Authorization` header of each request."""

    def __enter__(self) -> "ChatServer":
        script_lock = threading.Lock()
        chat = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with script_lock:
                    chat.requests.append({"path": self.path, **body})
                    chat.keys.append(self.headers["Authorization"])
                    scripted = chat.script.pop(0) if chat.script else None
                self.give(scripted or chat.answer(body["messages"]), body["model"])

            def give(self, answer: Answer, model: str) -> None:
                match answer:
                    case Say():
                        self.send(200, json.dumps(completion(answer, model)).encode())
                    case Send():
                        more = answer.headers
                        self.send(answer.status, answer.body, answer.content_type, more)
                    case Refuse():
                        error = {"message": answer.message, "code": answer.code}
                        self.send(answer.status, json.dumps({"error": error}).encode())
                    case Reset():
                        self.connection.shutdown(SHUT_RDWR)
                    case Drip():
                        self.wfile.write(b"HTTP/1.0 200 OK\r\n")
                        self.wfile.write(b"" if answer.is_header else b"\r\n")
                        while True:
                            self.wfile.write(answer.piece)
                            time.sleep(answer.pause)

            def send(
                self,
                status: int,
                body: bytes,
                kind: str = "application/json",
                more: Mapping[str, str] = MappingProxyType({}),
            ) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Retry-After-Ms", "1")  # short, so that tests are fast
                for name, value in more.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # client left
        threading.Thread(target=self._server.serve_forever, args=[0.01], daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.socket.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def instructions(self) -> list[str]:
        """The last task instruction in each request, in order of arrival."""
        return [
            [m["content"] for m in request["messages"] if "Your task:" in m["content"]][-1]
            for request in self.requests
        ]


def completion(say: Say, model: str) -> dict[str, Any]:
    return {
        "id": "chat-1",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": say.text, **say.more},
                "finish_reason": say.finish_reason,
            }
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }
