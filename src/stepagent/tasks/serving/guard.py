"""Access control of a served task: clients with the token, or else only programs on this machine.

The token is sent as `Authorization: Bearer TOKEN`, as the password in the URL
(`http://player:TOKEN@host:8000`, for players that accept only a URL), or as `?token=TOKEN`. Without
a token the server listens on loopback, and web pages must not reach it: browsers send an `Origin`,
and DNS rebinding shows in the `Host` header.
"""

import base64
import hashlib
import hmac
from collections.abc import Collection, Iterator
from contextlib import suppress
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

Refusal = tuple[int, str]
"""HTTP status and reason."""


class Guard:
    """ASGI middleware that refuses unauthorised requests and passes the others on."""

    def __init__(self, app: ASGIApp, *, token: str | None, hosts: Collection[str] | None) -> None:
        """`hosts` are the allowed values of the Host header; None allows any."""
        self._app = app
        self._token = None if token is None else _digest(token)
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Calls the application, or refuses the request."""
        refusal = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await _refuse(refusal, scope, receive, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = Headers(scope=scope)
        if "origin" in headers:
            return 403, "web pages have no access; expected a request without Origin"
        if self._hosts is not None and _host_of(headers) not in self._hosts:
            return 403, "expected a Host header with a name of this machine, such as localhost"
        if self._token is not None and not self._knows(scope, headers):
            return 401, "expected the header Authorization: Bearer TOKEN"
        return None

    def _knows(self, scope: Scope, headers: Headers) -> bool:
        # All tokens are compared, each in constant time, so that timing reveals nothing.
        given = [_digest(token) for token in _tokens(scope, headers)]
        return sum(hmac.compare_digest(token, self._token or b"") for token in given) > 0


def _tokens(scope: Scope, headers: Headers) -> Iterator[str]:
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        yield value.strip()
    if kind.lower() == "basic":
        with suppress(ValueError):  # neither base64 nor text
            yield base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
    query = scope.get("query_string", b"").decode("latin-1")
    with suppress(ValueError):  # too many fields
        yield from parse_qs(query, max_num_fields=20).get("token", [])


def _host_of(headers: Headers) -> str | None:
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname
    except ValueError:
        return None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


async def _refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    status, reason = refusal
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    response = JSONResponse({"detail": reason}, status, headers)
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get(
        "extensions", {}
    ):
        await send({"type": "websocket.close", "code": 1008})
        return
    await response(scope, receive, send)
