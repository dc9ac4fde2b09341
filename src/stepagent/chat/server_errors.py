"""Classifies errors of chat servers by their wording: too long, filtered, temporary, and so on.

Servers share no error codes: a prompt that is too long is reported in thirty wordings and with any
status, and an error may come with status 200 or wrapped in a proxy's error. So the wording decides,
or the status if the wording is inconclusive. Real examples are in
`tests/test_chat_server_errors.py`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Option = Literal["system", "temperature", "max_tokens", "max_completion_tokens"]
"""A part of a request that some servers reject."""

BUSY = frozenset({408, 409, 425, 429})
"""Statuses, besides 500 and above, after which a retry may succeed."""

MAX_TEXT = 4000
"""Characters of an error that are searched."""

TOLD = ("error", "message", "detail", "details", "msg", "errors", "error_description", "reason",
        "base_resp", "status_msg", "metadata", "raw", "provider_name",
        "param", "loc")  # fmt: skip
CODES = ("code", "type", "error_type", "error_code", "status", "innererror")


@dataclass(frozen=True)
class Fault:
    """An error that a server reports."""

    status: int | None
    """HTTP status, or one stated in the error's text; None if there is neither."""
    said: str
    """The error's message, unchanged."""
    words: str
    """Message and codes in one line, in lower case and without punctuation marks."""
    breaks_off: bool = False
    """Whether the request was accepted and its reply failed."""

    @property
    def is_too_long(self) -> bool:
        """Whether the messages exceed the model's context."""
        if self.status in (401, 402, 403, 404, 429) or _RATE.search(self.words):
            return False
        if _TIME.search(self.words):
            return False
        if _OUTPUT.search(self.words) and not _INPUT.search(self.words):
            return False  # the requested reply is too long, whatever the input
        return self.status == 413 or bool(_TOO_LONG.search(self.words))

    @property
    def is_filtered(self) -> bool:
        """Whether a content filter rejected the messages."""
        return self.status in (None, 400, 403, 422, 451, 500) and bool(_FILTER.search(self.words))

    @property
    def is_passing(self) -> bool:
        """Whether the error is temporary: a retry may succeed."""
        if self.status in (401, 402, 403, 404) or self.is_too_long:
            return False
        if self.breaks_off:
            return True
        if self.is_filtered:
            return False
        if self.status is None or self.status < 400:
            return bool(_RATE.search(self.words) or _PASSING.search(self.words))
        return self.status in BUSY or self.status >= 500 or bool(_RATE.search(self.words))

    def refuses(self, option: Option) -> bool:
        """Whether the server rejects this option of the request."""
        if self.status not in (None, 400, 404, 422, 500, 501):
            return False
        return bool(_REFUSED[option].search(self.words))


def read_fault(status: int, content: object, breaks_off: bool = False) -> Fault:
    """The error in an answer's JSON or text; its `said` is empty if there is no message."""
    said = list(dict.fromkeys(filter(None, _texts(content, TOLD))))
    codes = [code for code in _texts(content, (*TOLD, *CODES)) if code not in said]
    words = re.sub(r"[\s\"'`*_\\]+", " ", " ".join([*said, *codes])[:MAX_TEXT].lower())
    return Fault(_status(status, content), ": ".join(said)[:MAX_TEXT], words, breaks_off)


def _texts(content: object, names: tuple[str, ...], depth: int = 0) -> Iterator[str]:
    """All texts in fields of these names, nested ones too: proxies wrap errors in errors."""
    match content:
        case str():
            yield content[:MAX_TEXT].strip()
        case list() if depth < 8:
            for entry in content[:20]:
                yield from _texts(entry, names, depth + 1)
        case dict() if depth < 8:
            for name in names:
                if name in content:
                    yield from _texts(content[name], names, depth + 1)


def _status(status: int, content: object) -> int | None:
    if status >= 300:
        return status
    if isinstance(content, list) and content:
        content = content[0]
    if not isinstance(content, dict):
        return None
    error = content.get("error")
    for place in (error, content) if isinstance(error, dict) else (content,):
        for name in ("code", "status", "status_code", "http_status"):
            found = place.get(name)
            if isinstance(found, int | str) and re.fullmatch(r"[45]\d\d", str(found)[:9]):
                return int(found)
    return None


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns))


_RATE = _any(
    r"(?:tokens?|requests?) (?:per|/) ?(?:second|min|hour|day|month)", r"\b[tr]p[mdhs]\b",
    r"rate.?limit", r"too many requests", r"throttl", r"quota", r"concurren",
    r"(?:dai|week|month)ly", r"please wait before",
)  # fmt: skip

_OUTPUT = _any(
    r"max (?:new |completion |output )?tokens[^.;]{0,60}(?:too large|exceed|greater|larger|less"
    r"|must|at most|maximum|valid range|between|cannot|>)",
    r"number of output tokens",
    r"(?:at most|maximum of|up to|supports?) [\d,]+ (?:output|completion) tokens",
    r"fewer output tokens",
)

_INPUT = _any(
    r"\binputs?\b(?! validation)", r"\bprompt\b", r"\bmessages\b", r"\byour (?:request|message)",
    r"\bconversation\b", r"got -\d",
)  # fmt: skip

_CONTEXT = r"context (?:length|window|size|limit)\b(?! fallbacks)"
_TOO_LONG = _any(
    rf"(?:exceed|larger|longer|greater|too|overflow|beyond|fit|reduce|reached|max).{{0,100}}{_CONTEXT}",
    rf"{_CONTEXT}.{{0,60}}(?:exceed|larger|longer|greater|too|overflow|beyond|limit|only|reached|full)",
    r"(?:prompt|inputs?|messages?|request|conversation|text|content|body|payload|sequence|entity"
    r"|string|history|tokens?)\b(?:(?!temperature)[^:;]){0,60}\b(?:too (?:long|large|big)|(?:longer"
    r"|greater|larger|more) than.{0,120}(?:token|length|max|size|char)|exceed\w*.{0,120}(?:token"
    r"|length|max|size|char|limit)|must (?:have|be) (?:less|fewer|<=?))",
    r"prompt too (?:long|large)",
    r"reduce (?:the |your )?(?:length|size of|number of|prompt|input|message)",
    r"max(?:imum)? (?:\w+ )?(?:prompt|input|sequence|model|message) (?:length|len|size|tokens?)",
    r"(?<!output )(?<!completion )tokens? limit",
    r"too many (?:input |prompt )?tokens",
    r"tokens? exceed",
    r"range of input length",
    r"expected maxlength",
    r"at least 1, got -\d",
    r"超长|过长",
)  # fmt: skip
_TIME = _any(r"time[ -]?d? ?out", r"deadline", r"\bseconds?\b")

_FILTER = _any(
    r"content.?management.?policy", r"content.?filter", r"responsible.?ai", r"moderation",
    r"content (?:safety|polic|violat|exists risk)", r"safety (?:system|filter|polic|setting|check)",
    r"(?:was|been|is|input|prompt) flagged", r"flagged (?:as|by|for)", r"usage polic",
    r"policy violation", r"violat\w+ .{0,40}polic", r"data.?inspection.?failed", r"guardrail",
    r"(?:inappropriate|prohibited|sensitive|unsafe|harmful) content", r"blocklist",
    r"(?:prompt|input|request|content) (?:was|has been|is) blocked", r"敏感",
    r"ended with (?:safety|recitation|sensitive|refusal|spii)",
)  # fmt: skip

_PASSING = _any(
    r"overload", r"temporar", r"try(?:ing)? again", r"retry", r"time[ -]?d? ?out", r"unavailable",
    r"capacity", r"busy", r"internal (?:server )?error", r"server error", r"upstream",
    r"bad gateway", r"provider returned error", r"connection", r"loading",
)  # fmt: skip

_NOT = (
    r"(?:unsupported|not support|n.t support|unrecogni[sz]ed|unknown|unexpected|extra (?:input"
    r"|field|forbidden)|not (?:permitted|allowed|accepted|enabled|available|recogni[sz]ed"
    r"|a valid|one of)|invalid (?:parameter|argument|field|role)|additional propert|deprecated"
    r"|forbidden|no such|does not exist|disallowed|only the default)"
)


def _refusal_of(name: str, *more: str) -> re.Pattern[str]:
    return _any(rf"{_NOT}.{{0,60}}\b{name}\b", rf"\b{name}\b.{{0,60}}{_NOT}", *more)


_REFUSED: dict[Option, re.Pattern[str]] = {
    "system": _refusal_of(
        r"(?:system|developer (?:role|message|instruction)s?)",
        r"roles? must alternate",
        r"only (?:the )?user (?:and|or) assistant",
        r"(?:permitted|expected|one of|allowed|should be)[^a-z]{0,8}user\W{0,8}(?:(?:or|and) )?"
        r"assistant",
        r"(?:first|start)\w* .{0,40}\buser (?:role|message)",
    ),
    "temperature": _refusal_of("temperature"),
    "max_tokens": _refusal_of("max tokens"),
    "max_completion_tokens": _refusal_of("max completion tokens"),
}
"""Wordings that reject an option itself; none may match an error about the option's value."""
