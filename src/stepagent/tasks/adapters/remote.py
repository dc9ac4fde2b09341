"""Servers of environments: addresses, JSON over HTTP, and which errors are worth a retry.

Failures that may be temporary (server unreachable or restarted, timeout, unreadable answer) raise
`EnvironmentLost`, and the episode is repeated a few times. A refusal that would be repeated raises
`ServerError`. Text from servers is untrusted: validated, and shortened and escaped in messages.
"""

import json
import time
from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import urljoin, urlsplit

import httpx2
from pydantic import JsonValue

from stepagent.console.printable import printable
from stepagent.tasks.adapters.replies import quoted
from stepagent.tasks.base import EnvironmentLost
from stepagent.tasks.deadline import Deadline

MAX_REPLY_BYTES = 16 * 2**20

MAX_REDIRECTS = 5

LOOPBACK = ("localhost", "127.0.0.1", "::1")

CLOSE_SECONDS = 5.0
"""Timeout of closing a session."""


class ServerError(RuntimeError):
    """The server refuses a request, or is of another kind; the message is one line."""

    def __init__(self, message: str) -> None:
        """The message may hold text from servers."""
        super().__init__(printable(message, limit=4096))


def server_url(url: str) -> str:
    """The address without a trailing slash; raises `ServerError` unless it is one over HTTP."""
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or parts.username or parts.query or parts.fragment:
        raise ServerError(
            f"{quoted(url)}: not the address of a server; expected one like http://127.0.0.1:8000"
        )
    return url.rstrip("/")


def is_loopback(url: str) -> bool:
    """Whether the server is on this machine, which no proxy can reach."""
    return urlsplit(url).hostname in LOOPBACK


def parsed(reply: bytes | str, place: str) -> JsonValue:
    """The JSON value of a reply; raises `EnvironmentLost` if it is not JSON."""
    try:
        value: JsonValue = json.loads(reply)
    except (ValueError, RecursionError):
        raise EnvironmentLost(f"{place}: the answer is not JSON: {quoted(reply[:200])}") from None
    return value


class JsonServer:
    """Requests JSON from a server, from any thread, with a new connection for each request.

    The server could close a kept connection just when an action is sent, and it would be unknown
    whether the action was played.
    """

    def __init__(self, url: str, *, timeout_seconds: float, headers: Mapping[str, str]) -> None:
        """Raises `ServerError` for an invalid address; sends nothing yet."""
        self.url = server_url(url)
        self.timeout_seconds = timeout_seconds
        self._headers = dict(headers)
        self._client = httpx2.Client(
            trust_env=not is_loopback(self.url),
            limits=httpx2.Limits(max_keepalive_connections=0),
        )

    def get(self, path: str, **query: JsonValue) -> JsonValue:
        """The answer to a GET; repeated once on failure if the timeout allows."""
        begun = time.monotonic()
        try:
            return self._ask("GET", path, timeout_seconds=self.timeout_seconds, params=query)
        except EnvironmentLost:
            left = begun + self.timeout_seconds - time.monotonic()
            if left <= 0:
                raise
            return self._ask("GET", path, timeout_seconds=left, params=query)

    def post(
        self, path: str, body: JsonValue = None, *, timeout_seconds: float | None = None
    ) -> JsonValue:
        """The answer to a POST, without a body if it is None; sent once, as it may be a step."""
        sent = {} if body is None else {"json": body}
        return self._ask(
            "POST", path, timeout_seconds=timeout_seconds or self.timeout_seconds, **sent
        )

    def _ask(self, method: str, path: str, *, timeout_seconds: float, **sent: Any) -> JsonValue:
        place, address = f"{self.url}{path}", f"{self.url}{path}"
        with Deadline(timeout_seconds) as deadline:
            for _ in range(MAX_REDIRECTS + 1):
                status, reply, moved = self._exchange(method, address, deadline, **sent)
                if moved is None:
                    break
                if status == httpx2.codes.SEE_OTHER:
                    method, sent = "GET", {}
                # The address of a redirect already includes the query.
                sent.pop("params", None)
                address = _same_host(place, address, moved)
            else:
                raise ServerError(f"{place}: more than {MAX_REDIRECTS} redirects")
        if not 200 <= status < 300:
            _refuse(place, status, reply)
        return parsed(reply, place)

    def _exchange(
        self, method: str, address: str, deadline: Deadline, **sent: Any
    ) -> tuple[int, bytes, str | None]:
        """Status and body of an answer, or the address that it redirects to."""
        reply = bytearray()
        # Headers may hold secrets, which a redirect must not leak to another address.
        headers = self._headers if _origin(address) == _origin(self.url) else {}
        try:
            with self._client.stream(
                method, address, headers=headers, timeout=deadline.seconds_left(),
                extensions={"trace": deadline.watch}, **sent,
            ) as response:  # fmt: skip
                if response.is_redirect:
                    return response.status_code, b"", response.headers.get("Location", "")
                for part in response.iter_bytes():
                    reply += part
                    if len(reply) > MAX_REPLY_BYTES:
                        raise EnvironmentLost(
                            f"{address}: the answer exceeds {MAX_REPLY_BYTES:,} bytes"
                        )
            deadline.seconds_left()
        except (httpx2.TimeoutException, TimeoutError):
            raise self._late(address, deadline) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            if deadline.is_over:
                raise self._late(address, deadline) from None
            raise EnvironmentLost(
                f"{address}: cannot be reached ({quoted(str(error))}); is the server running?"
            ) from None
        return response.status_code, bytes(reply), None

    def _late(self, address: str, deadline: Deadline) -> EnvironmentLost:
        return EnvironmentLost(f"{address}: no answer within {deadline.seconds:g} s")


def _same_host(place: str, address: str, moved: str) -> str:
    """The target of a redirect; raises `ServerError` for another host or a downgrade to http."""
    try:
        found = urlsplit(urljoin(address, moved))
        now = urlsplit(address)
        stays = found.hostname == now.hostname and found.port != 0
    except ValueError:
        stays = False
    if not moved or not stays or found.scheme not in ("http", "https"):
        raise ServerError(
            f"{place}: redirects to another server, {quoted(moved)}; if you trust it, name it"
        )
    if now.scheme == "https" and found.scheme != "https":
        raise ServerError(
            f"{place}: redirects from https to {quoted(moved)}, which is not encrypted"
        )
    return found.geturl()


def _origin(address: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(address)
    return parts.scheme, parts.hostname, parts.port


def _refuse(place: str, status: int, said: bytes) -> NoReturn:
    message = f"{place}: error {status}; it says: {quoted(said.decode(errors='replace'))}"
    # Busy and failing servers may recover; a wrong path or body stays wrong.
    if status >= 500 or status in (408, 425, 429):
        raise EnvironmentLost(message)
    raise ServerError(message)
