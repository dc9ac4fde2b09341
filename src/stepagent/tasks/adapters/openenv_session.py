"""A session on an OpenEnv server: connection, messages and their errors.

A message is `{"type": "reset" | "step" | "close", "data": {...}}`, its answer
`{"type": "observation", "data": {"observation", "reward", "done", "metadata"}}`, or
`{"type": "error", "data": {"message", "code"}}` (OpenEnv 0.10, `core/env_server/types.py`).
"""

import contextlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from stepagent.tasks.adapters.remote import (
    CLOSE_SECONDS,
    MAX_REPLY_BYTES,
    ServerError,
    is_loopback,
    parsed,
)
from stepagent.tasks.adapters.replies import quoted
from stepagent.tasks.base import EnvironmentLost
from stepagent.tasks.data.optional_packages import needs

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

REFUSALS = ("INVALID_JSON", "UNKNOWN_TYPE", "VALIDATION_ERROR")
"""Error codes of requests that would be refused again; other errors are worth a retry."""


class Session:
    """A session that connects at the first request, and again after a failure."""

    def __init__(self, url: str, *, timeout_seconds: float, headers: Mapping[str, str]) -> None:
        """Raises `PackageMissing` if websockets is not installed; does not connect yet."""
        with needs("openenv"):
            import websockets
        self._closed = websockets.ConnectionClosed
        self._url = url
        self._timeout_seconds = timeout_seconds
        self._headers = dict(headers)
        self._connection: ClientConnection | None = None
        self._open = contextlib.ExitStack()

    def ask(self, kind: str, data: dict[str, Any]) -> dict[str, JsonValue]:
        """The data of the server's answer; an error ends the session."""
        try:
            if self._connection is None:
                self._connection = self._connect()
            reply = self._exchange(self._connection, {"type": kind, "data": data})
            return self._checked(reply, kind)
        except (EnvironmentLost, ServerError):
            self.close()
            raise

    def close(self) -> None:
        """Sends a close message and ends the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError, self._closed):
                connection.send(json.dumps({"type": "close"}))
            self._open.close()

    def _connect(self) -> "ClientConnection":
        from websockets.exceptions import InvalidHandshake, InvalidStatus
        from websockets.sync.client import connect

        address = f"ws{self._url.removeprefix('http')}/ws"
        try:
            return self._open.enter_context(
                connect(
                    address,
                    additional_headers=self._headers,
                    proxy=None if is_loopback(self._url) else True,
                    open_timeout=self._timeout_seconds,
                    close_timeout=CLOSE_SECONDS,
                    max_size=MAX_REPLY_BYTES,
                )
            )
        except InvalidStatus as error:
            status = error.response.status_code
            if status >= 500 or status == 429:
                raise EnvironmentLost(f"{address}: error {status}") from None
            raise ServerError(
                f"{address}: error {status}; it is not an OpenEnv server, or it rejects the headers"
            ) from None
        except (OSError, InvalidHandshake) as error:
            raise EnvironmentLost(
                f"{address}: cannot be reached ({quoted(str(error))}); is the server running?"
            ) from None

    def _exchange(self, connection: "ClientConnection", message: dict[str, Any]) -> bytes | str:
        # A full server says so and disconnects, perhaps before this is sent.
        with contextlib.suppress(self._closed):
            connection.send(json.dumps(message))
        try:
            return connection.recv(timeout=self._timeout_seconds)
        except TimeoutError:
            raise EnvironmentLost(
                f"{self._url}: no answer within {self._timeout_seconds:g} s"
            ) from None
        except self._closed as error:
            raise EnvironmentLost(
                f"{self._url}: the session was lost ({quoted(str(error))})"
            ) from None

    def _checked(self, reply: bytes | str, kind: str) -> dict[str, JsonValue]:
        value = parsed(reply, self._url)
        said = value.get("type") if isinstance(value, dict) else None
        data = value.get("data") if isinstance(value, dict) else None
        if said not in ("observation", "error") or not isinstance(data, dict):
            raise EnvironmentLost(f"{self._url}: not an answer of OpenEnv: {quoted(value)}")
        if said == "error":
            code = data.get("code")
            errors = f", {quoted(data['errors'])}" if "errors" in data else ""
            message = (
                f"{self._url}: {kind} failed with {quoted(code)}: "
                f"{quoted(data.get('message'))}{errors}"
            )
            raise ServerError(message) if code in REFUSALS else EnvironmentLost(message)
        return data
