"""Requests to an inference server: total time limits, retries, errors of one line."""

import json
from contextlib import suppress
from urllib.parse import urlsplit

import anyio
import anyio.from_thread
import httpx2

from stepagent.chat.client import headers_with, quoted, read_key, shown_url, usual_pause
from stepagent.chat.http import Answer, Unreachable, Unusable, post, post_async
from stepagent.chat.replies import Unreadable, parse, read_error

EXAMPLE = "http://localhost:8000"

LONGEST_ANSWER = 600.0
"""Seconds that one request may take in all, an action or the loading of an adapter."""
RETRIES = 5
"""Further tries if the server cannot be reached or is busy."""
SHORT_WAIT = 10.0
"""Seconds for a request at the end of a program, which nothing depends on."""


class InferenceError(RuntimeError):
    """The inference server cannot be used; the message is one line."""


class Requests:
    """Sends requests to one address, with the key in the environment if there is one."""

    def __init__(self, url: str) -> None:
        """Sends none yet; raises `ChatError` or `InferenceError` for what is no address."""
        self.url = shown_url(url, EXAMPLE).rstrip("/").removesuffix("/v1")
        parts = urlsplit(url)
        if parts.username or parts.password or parts.query:
            raise InferenceError(
                f"{self.url}: expected an address without a name, a password or a question mark"
            )
        self._key = read_key()

    def send(self, path: str, body: object) -> Answer:
        """As `answer`, for a caller that waits for nothing else."""
        with anyio.from_thread.start_blocking_portal() as portal:
            answer: Answer = portal.call(self.answer, path, body)
            return answer

    def try_to_send(self, path: str, body: object) -> None:
        """Sends a request once and waits for a short time, whatever comes of it."""
        endpoint, headers = httpx2.URL(f"{self.url}{path}"), headers_with(self._key)
        with suppress(TimeoutError, Unreachable, Unusable):
            post(endpoint, headers, json.dumps(body).encode(), SHORT_WAIT)

    async def answer(self, path: str, body: object) -> Answer:
        """The answer, of any status, after retries of errors that may pass.

        Raises `InferenceError` if there is none in time.
        """
        content, endpoint = json.dumps(body).encode(), httpx2.URL(f"{self.url}{path}")
        tries = 1
        while True:
            try:
                answer = await post_async(
                    endpoint, headers_with(self._key), content, LONGEST_ANSWER
                )
                if tries > RETRIES or not _is_passing(answer):
                    return answer
                pause = answer.pause
            except TimeoutError:
                raise InferenceError(f"{endpoint}: no answer within {LONGEST_ANSWER:g} s") from None
            except Unusable as error:
                said = self.quoted(str(error))
                raise InferenceError(f"{endpoint}: no usable answer: {said}") from None
            except Unreachable as error:
                if tries > RETRIES:
                    raise InferenceError(
                        f"{self.url}: cannot be reached ({self.quoted(str(error))}), tried "
                        f"{tries} times; check that the server is running"
                    ) from None
                pause = None
            await anyio.sleep(usual_pause(tries) if pause is None else pause)
            tries += 1

    def quoted(self, text: str) -> str:
        """The start of a text of the server, for a message."""
        return quoted(text, self._key)

    def said(self, answer: Answer) -> str:
        """What an answer says went wrong, for a message."""
        return self.quoted(_failure(answer) or read_error(answer.status, answer.body).said)


def succeeded(answer: Answer) -> bool:
    """Whether the server did what it was asked to; SGLang may deny it with any status."""
    return answer.status < 300 and _failure(answer) is None


def is_missing(answer: Answer) -> bool:
    """Whether the server does not know the path, rather than what was asked for there."""
    if answer.status not in (404, 405):
        return False
    return read_error(answer.status, answer.body).said.lower() in (
        "", "not found", "method not allowed",
    )  # fmt: skip


def _is_passing(answer: Answer) -> bool:
    return answer.status >= 300 and read_error(answer.status, answer.body).is_passing


def _failure(answer: Answer) -> str | None:
    """What SGLang says of an adapter that it has not loaded."""
    try:
        content = parse(answer.body)
    except Unreadable:
        return None  # vLLM confirms in words
    if isinstance(content, dict) and content.get("success") is False:
        return str(content.get("error_message") or content.get("message") or content)
    return None
