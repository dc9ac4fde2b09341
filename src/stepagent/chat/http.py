"""One HTTP request with limits on its total time and on the size of the answer.

Timeouts of HTTP clients apply to each read, so a server that sends one byte a second never exceeds
them. Here the limit is for the whole request, from the DNS lookup to the last byte.
"""

import ssl
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cache

import anyio
import anyio.from_thread
import httpx2

MAX_BYTES = 16 * 2**20
"""Longest answer, compressed and decompressed; a chat reply has a few thousand bytes."""

MAX_REDIRECTS = 3

MAX_PAUSE = 60.0
"""Longest pause, in seconds, that a server may ask for; longer ones are ignored."""


@dataclass(frozen=True)
class Answer:
    """A server's answer."""

    status: int
    headers: Mapping[str, str]
    """Case-insensitive by name."""
    body: bytes

    @property
    def pause(self) -> float | None:
        """Seconds to wait before a retry, by the Retry-After header; None if it is not usable."""
        try:
            if "Retry-After-Ms" in self.headers:
                seconds = float(self.headers["Retry-After-Ms"]) / 1000
            elif (wish := self.headers.get("Retry-After", "")).replace(".", "", 1).isdigit():
                seconds = float(wish)
            else:
                seconds = parsedate_to_datetime(wish).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
        return seconds if 0 <= seconds <= MAX_PAUSE else None


class Unreachable(Exception):
    """No complete answer came; a retry may succeed."""


class Unusable(Exception):
    """An answer came that cannot be used; a retry would not help."""


def post(url: httpx2.URL, headers: Mapping[str, str], body: bytes, seconds: float) -> Answer:
    """Sends a POST request; raises `TimeoutError`, `Unreachable` or `Unusable`.

    Redirects are followed only within the server, since no other may get the key and messages.
    """
    # In a new thread, since the caller's may already run an event loop, as in notebooks.
    with anyio.from_thread.start_blocking_portal() as portal:
        return portal.call(post_async, url, headers, body, seconds)


async def post_async(
    url: httpx2.URL, headers: Mapping[str, str], body: bytes, seconds: float
) -> Answer:
    """As `post`, for callers that wait for several answers at once."""
    try:
        client = httpx2.AsyncClient(timeout=None, verify=_certificates())
    except (ValueError, ImportError, OSError) as error:  # from proxy or certificate settings
        raise Unusable(f"proxy or certificate settings of the environment: {error}") from None
    headers = {**headers, "Accept-Encoding": "identity"}
    request = client.build_request("POST", url, headers=headers, content=body)
    try:
        with anyio.fail_after(seconds):
            async with client:
                for _ in range(MAX_REDIRECTS + 1):
                    response = await client.send(request, stream=True)
                    try:
                        if response.next_request is None:
                            content = await _content(response)
                            return Answer(response.status_code, response.headers, content)
                    finally:
                        await response.aclose()
                    request = _within(request, response.next_request)
        raise Unusable(f"redirects more than {MAX_REDIRECTS} times")
    except (httpx2.TransportError, OSError) as error:
        if isinstance(error, TimeoutError):
            raise
        raise Unreachable(str(error) or type(error).__name__) from None


@cache
def _certificates() -> ssl.SSLContext:
    """The TLS certificates, loaded once since that takes longer than a request."""
    return httpx2.create_ssl_context()


def _within(request: httpx2.Request, following: httpx2.Request) -> httpx2.Request:
    before, after = request.url, following.url
    is_same = (before.scheme, before.host, before.port) == (after.scheme, after.host, after.port)
    if not is_same or following.method != request.method:
        raise Unusable(f"redirects to {after}; if that is correct, use that address")
    return following


async def _content(response: httpx2.Response) -> bytes:
    """The body, decompressed."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise Unusable(f"compressed as {encoding}, which was not requested")
    unpack = None if encoding in ("", "identity") else zlib.decompressobj(32 + zlib.MAX_WBITS)
    content = bytearray()
    async for part in response.aiter_raw():
        try:
            content += unpack.decompress(part, MAX_BYTES + 1) if unpack else part
        except zlib.error as error:
            raise Unusable(f"cannot be decompressed: {error}") from None
        if len(content) > MAX_BYTES:
            raise Unusable(f"longer than {MAX_BYTES // 2**20} MiB")
    if unpack and not unpack.eof:
        raise Unreachable("the compressed answer is incomplete")
    return bytes(content)
