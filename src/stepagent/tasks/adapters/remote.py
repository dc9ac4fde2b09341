"""Servers that environments live on: their addresses, what goes wrong, JSON over HTTP.

Whatever may go better next time, an unreachable or restarted server, no answer in time, an answer
that cannot be read, is `EnvironmentLost`: the episode is repeated a few times. A refusal that would
come again is `ServerError`. Text from servers is data: checked, cut and escaped in messages.
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
"""How long a farewell may take."""


class ServerError(RuntimeError):
    """The server refuses what it is asked, or is no server of this kind; the message is a line."""

    def __init__(self, message: str) -> None:
        """Text of servers may be in the message."""
        super().__init__(printable(message, limit=4096))


def server_url(url: str) -> str:
    """The address without a slash at its end; `ServerError` if it is none."""
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
    """Whether the server is on this machine, where no proxy reaches it."""
    return urlsplit(url).hostname in LOOPBACK


def parsed(reply: bytes | str, place: str) -> JsonValue:
    """The JSON of a reply; `EnvironmentLost` if it is none."""
    try:
        value: JsonValue = json.loads(reply)
    except (ValueError, RecursionError):
        raise EnvironmentLost(f"{place}: the answer is no JSON: {quoted(reply[:200])}") from None
    return value


class JsonServer:
    """Asks a server for JSON, from any thread, with a connection for each question.

    A kept connection could be closed by the server just when the next action is sent, and nobody
    would know whether the action was done.
    """

    def __init__(self, url: str, *, timeout_seconds: float, headers: Mapping[str, str]) -> None:
        """Raises `ServerError` if the address is none; asks nothing yet."""
        self.url = server_url(url)
        self.timeout_seconds = timeout_seconds
        self._headers = dict(headers)
        self._client = httpx2.Client(
            trust_env=not is_loopback(self.url),
            limits=httpx2.Limits(max_keepalive_connections=0),
        )

    def get(self, path: str, **query: JsonValue) -> JsonValue:
        """The answer to a GET, which is asked once more if there is none and there is time."""
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
        """The answer to a POST; no body if it is None. It is sent once: it may be a step."""
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
                # The address that a redirect names has the query in it already.
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
        """Status and body of one answer; or where the question is to be asked instead."""
        reply = bytearray()
        # Secrets are for the address that they were given for.
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
                            f"{address}: the answer has more than {MAX_REPLY_BYTES:,} bytes"
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
    """Where a redirect leads; raises `ServerError` if that is another host, or no longer TLS."""
    try:
        found = urlsplit(urljoin(address, moved))
        now = urlsplit(address)
        stays = found.hostname == now.hostname and found.port != 0
    except ValueError:
        stays = False
    if not moved or not stays or found.scheme not in ("http", "https"):
        raise ServerError(
            f"{place}: leads to another server, {quoted(moved)}; if you trust it, give its address"
        )
    if now.scheme == "https" and found.scheme != "https":
        raise ServerError(f"{place}: leads from https to {quoted(moved)}, which anybody can read")
    return found.geturl()


def _origin(address: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(address)
    return parts.scheme, parts.hostname, parts.port


def _refuse(place: str, status: int, said: bytes) -> NoReturn:
    message = f"{place}: error {status}; it says: {quoted(said.decode(errors='replace'))}"
    # Busy and failing servers may get better; a path or a body that is wrong stays so.
    if status >= 500 or status in (408, 425, 429):
        raise EnvironmentLost(message)
    raise ServerError(message)
