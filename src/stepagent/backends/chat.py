"""Chat models behind an OpenAI-compatible server: one reply at a time, its tokens counted.

Rate limits, server errors and lost connections are tried again with growing, jittered pauses by the
`openai` package. What then still fails is one line for the user. The key comes from the environment
variable `OPENAI_API_KEY`; it is sent to the server and goes nowhere else.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import openai

DEFAULT_URL = "https://api.openai.com/v1"

KEY_VARIABLE = "OPENAI_API_KEY"


class ChatError(RuntimeError):
    """The server gives no usable answer; the message is one line."""


class TooLong(ChatError):
    """The messages do not fit into the model's context."""


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """How a chat model is asked."""

    base_url: str | None = None
    """Address of the API, usually ending in /v1; by default OPENAI_BASE_URL, then OpenAI itself."""
    temperature: float | None = 0.0
    """Softmax temperature; None leaves it to the server, as reasoning models want it."""
    max_tokens: int = 512
    """Longest reply, in tokens."""
    timeout_seconds: float = 120.0
    """How long one try may take."""
    max_retries: int = 5
    """Tries after the first, at rate limits, server errors and lost connections."""


@dataclass(frozen=True)
class Message:
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Usage:
    """Tokens read and written, as the server counts them; None if it has not said so."""

    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            _sum(self.prompt_tokens, other.prompt_tokens),
            _sum(self.completion_tokens, other.completion_tokens),
        )

    def cost(self, price_in: float | None, price_out: float | None) -> float | None:
        """What it cost at prices for a million tokens; None if a price or a count is not known."""
        if self.prompt_tokens is None or self.completion_tokens is None:
            return None
        if price_in is None or price_out is None:
            return None
        return (self.prompt_tokens * price_in + self.completion_tokens * price_out) / 1e6


@dataclass(frozen=True)
class Reply:
    """What the model said."""

    text: str
    """Empty if it said nothing, or only called tools."""
    is_cut_off: bool
    """Whether a limit or a filter ended it, not the model."""
    usage: Usage


class ChatClient:
    """A model on a server; any thread may ask it."""

    def __init__(self, model: str, config: ChatConfig) -> None:
        """Raises `ChatError` if the address is none or the key is missing; asks nothing yet."""
        try:
            import openai
        except ImportError:
            raise ChatError(
                "openai:MODEL needs the openai package; install it: pip install 'stepagent[openai]'"
            ) from None
        self.model = model
        self.config = config
        url = config.base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL
        self.url = _shown_url(url)
        self._key = os.environ.get(KEY_VARIABLE, "")
        if not self._key and url == DEFAULT_URL:
            raise ChatError(f"{self.url}: wants a key; set the environment variable {KEY_VARIABLE}")
        self._client = openai.OpenAI(
            base_url=url,
            # Local servers want none, but the package does not send a request without one.
            api_key=self._key or "none",
            timeout=config.timeout_seconds,
            max_retries=config.max_retries,
        )

    def reply(self, messages: Sequence[Message]) -> Reply:
        """The model's reply; raises `ChatError`, or `TooLong` if the messages do not fit."""
        import openai

        options: dict[str, Any] = {"max_completion_tokens": self.config.max_tokens}
        if self.config.temperature is not None:
            options["temperature"] = self.config.temperature
        plain = [{"role": message.role, "content": message.content} for message in messages]
        try:
            answer = self._client.chat.completions.create(
                model=self.model, messages=cast(Any, plain), **options
            )
        except openai.APIError as error:
            raise self._explained(error) from None
        except ValueError as error:  # of the JSON decoder, or of UTF-8
            raise self._malformed(str(error)) from None
        return self._checked(answer)

    def _checked(self, answer: "openai.types.chat.ChatCompletion") -> Reply:
        """The reply in an answer that may be anything: the package checks no types."""
        try:
            choice = answer.choices[0]
            text = choice.message.content
            finish_reason = choice.finish_reason
            usage = answer.usage
            counts = (usage.prompt_tokens, usage.completion_tokens) if usage else (None, None)
        except (AttributeError, TypeError, IndexError, KeyError):
            raise self._malformed("no message in it") from None
        if not isinstance(text, str | None):
            raise self._malformed("the message's content is no text")
        if not all(count is None or (isinstance(count, int) and count >= 0) for count in counts):
            raise self._malformed("its token counts are no numbers")
        return Reply(
            # Lone surrogates, which JSON may hold, cannot be written to a file.
            text=(text or "").encode("utf-8", "replace").decode(),
            is_cut_off=finish_reason in ("length", "content_filter"),
            usage=Usage(*counts),
        )

    def _malformed(self, reason: str) -> ChatError:
        return ChatError(
            f"{self.url}: not an answer of a chat completions API ({self._quoted(reason)}); "
            "the address usually ends in /v1"
        )

    def _explained(self, error: "openai.APIError") -> ChatError:
        """The package's error as one line that says what to do."""
        import openai

        said = self._quoted(_message(error))
        tries = self.config.max_retries + 1
        match error:
            case openai.APITimeoutError():
                limit = self.config.timeout_seconds
                return ChatError(f"{self.url}: no answer within {limit:g} s, tried {tries} times")
            case openai.APIConnectionError():
                cause = self._quoted(str(error.__cause__ or error.message))
                return ChatError(
                    f"{self.url}: cannot be reached ({cause}), tried {tries} times; "
                    "is the server running?"
                )
            case openai.AuthenticationError() | openai.PermissionDeniedError():
                return ChatError(
                    f"{self.url}: refuses the key, check the environment variable {KEY_VARIABLE}; "
                    f"it says: {said}"
                )
            case openai.NotFoundError():
                return ChatError(
                    f"{self.url}: no model {self.model!r} there, or no chat completions API (the "
                    f"address usually ends in /v1); it says: {said}"
                )
            case openai.APIStatusError() if _is_too_long(error):
                return TooLong(f"{self.url}: too long for model {self.model!r}; it says: {said}")
            case openai.RateLimitError() | openai.InternalServerError():
                return ChatError(
                    f"{self.url}: error {error.status_code}, tried {tries} times; it says: {said}"
                )
            case openai.APIStatusError():
                return ChatError(
                    f"{self.url}: error {error.status_code} for model {self.model!r}; "
                    f"it says: {said}"
                )
        return ChatError(f"{self.url}: {said}")

    def _quoted(self, text: str) -> str:
        """The start of a text from outside, escaped and without the key, which it may repeat."""
        return repr((text.replace(self._key, "***") if self._key else text)[:300])


def _sum(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def _shown_url(url: str) -> str:
    """The address without the parts that may hold secrets; raises `ChatError` if it is none."""
    try:
        parts = urlsplit(url)
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:
        parts, port = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ChatError(
            f"{url[:100]!r}: not the address of a server; expected one like {DEFAULT_URL}"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{port}{parts.path}"


def _message(error: "openai.APIError") -> str:
    """What the server said of an error, in whatever form."""
    import openai

    if isinstance(error.body, dict) and isinstance(message := error.body.get("message"), str):
        return message
    return error.response.text if isinstance(error, openai.APIStatusError) else error.message


def _is_too_long(error: "openai.APIStatusError") -> bool:
    """Whether a request was refused for its length; servers agree on no code for it."""
    text = f"{error.code} {_message(error)}".lower().replace("_", " ")
    is_length = any(word in text for word in ("context length", "context size", "context window"))
    return error.status_code in (400, 413, 422) and is_length
