"""Text to token ids and back: markup may contain control tokens, content never does.

A control token is an added token of the tokenizer that structures the dialogue: every special
token, every one that the chat template writes around contents, and every other one that is not just
a word, blank space or a single character. The tokenizer's own `special` flag is not enough:
`<think>` and `<tool_call>` often lack it.
"""

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import cast

from transformers import BatchEncoding, PreTrainedTokenizerBase

_WORD = re.compile(r"[\w\s'-]*")
"""Added tokens of this form are ordinary vocabulary, such as a name that a user has added."""

_SHOWN = 60
"""Characters of a text that a message quotes."""


class EncodingError(ValueError):
    """The tokenizer cannot encode a text; the message is one line."""


class Encoder:
    """A tokenizer that never turns the text of tasks and models into control tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, written: str = "") -> None:
        """Determines which of the tokenizer's tokens are control tokens.

        `written` is the text that the chat template writes around contents.
        """
        self.tokenizer = tokenizer
        special = {*tokenizer.all_special_ids}
        self.control = {
            number: str(token)
            for number, token in tokenizer.added_tokens_decoder.items()
            if number != _unknown(tokenizer)
            and (
                number in special
                or (len(str(token)) > 1 and not _WORD.fullmatch(str(token)))
                or (str(token).strip() and str(token) in written)
            )
        }
        """Control tokens by id."""
        self._anchors = [(text, self._plain(text)) for text in ("\n", "x")]

    def markup(self, text: str, *, behind: str = "") -> list[int]:
        """Ids of text that the chat template wrote, in which control tokens are recognized.

        `behind` is the markup before it: some tokenizers add a space at the start of a text.
        """
        before, whole = self._encode(behind), self._encode(behind + text)
        return whole[len(before) :] if whole[: len(before)] == before else self._encode(text)

    def content(self, text: str, space: str = "", head: str = "") -> list[int]:
        """Ids of content, such as an observation, that follows markup; never has control tokens.

        `space` is what the template writes before it, and `head` the plain text after it up to the
        next control token: tokenizers merge across that border, for example a full stop and a line
        break. Raises `EncodingError` if the tokenizer makes a control token of the text wherever it
        is cut.
        """
        ids: list[int] = []
        # Lone surrogates, which some environments return, cannot be encoded.
        parts = [space + text.encode("utf-8", "replace").decode().strip() + head]
        while parts:
            part = parts.pop()
            found = self._behind_anchor(part)
            if self.control.keys().isdisjoint(found):
                ids += found
            else:
                # The tokenizer finds control tokens in the text, perhaps only after normalising
                # it. Cut in the middle, they are plain text.
                cuts = [0, *self._inside_marks(part), len(part)]
                parts += [part[start:end] for start, end in reversed([*pairwise(cuts)])]
        return ids

    def split_head(self, markup: str) -> tuple[str, str]:
        """Markup before its first control token, and the rest; all is rest if it has none."""
        places = [markup.index(mark) for mark in self.control.values() if mark in markup]
        head = min(places, default=0)
        return markup[:head], markup[head:]

    def _behind_anchor(self, text: str) -> list[int]:
        # Some tokenizers add a space at the start of every text, which must not come between markup
        # and content. So the text is encoded after an anchor: a line break, which rarely merges
        # with what follows, or else a letter.
        for anchor, before in self._anchors:
            ids = self._plain(anchor + text)
            if ids[: len(before)] == before:
                return ids[len(before) :]
        raise EncodingError("the tokenizer merges a text with what stands before it")

    def _inside_marks(self, text: str) -> list[int]:
        """A position inside each control token that the tokenizer finds in a text."""
        cuts = []
        for start, end in sorted(set(self._marks(text))):
            cut = (start + end) // 2
            if not start < cut < end:
                mark = text[max(start, 0) : end]
                raise EncodingError(f"the tokenizer turns {mark!r} into a control token")
            cuts.append(cut)
        if not cuts:
            raise EncodingError("the tokenizer turns part of the text into a control token")
        return cuts

    def _marks(self, text: str) -> Iterable[tuple[int, int]]:
        if not self.tokenizer.is_fast:
            marks = sorted(map(re.escape, self.control.values()), key=len, reverse=True)
            return [found.span() for found in re.finditer("|".join(marks), text)]
        encoded = self._read("\n" + text, split_special_tokens=True, return_offsets_mapping=True)
        pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return [(start - 1, end - 1) for number, (start, end) in pairs if number in self.control]

    def _encode(self, text: str) -> list[int]:
        if not text:
            return []
        return cast(list[int], self._read(text)["input_ids"])

    def _plain(self, text: str) -> list[int]:
        return cast(list[int], self._read(text, split_special_tokens=True)["input_ids"])

    def _read(self, text: str, **options: bool) -> BatchEncoding:
        try:
            encoded: BatchEncoding = self.tokenizer(text, add_special_tokens=False, **options)
            return encoded
        except BaseException as error:
            # A panic in the tokenizers library, whose Python type is not an Exception.
            if type(error).__name__ != "PanicException":
                raise
            start = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
            raise EncodingError(f"the tokenizer crashes on {start!r}") from None

    def text(self, ids: list[int], *, with_control: bool = False) -> str:
        """The text of ids, without special tokens unless `with_control`."""
        decoded = self.tokenizer.decode(
            ids, skip_special_tokens=not with_control, clean_up_tokenization_spaces=False
        )
        return cast(str, decoded)

    def controls(self, ids: list[int]) -> list[int]:
        """The control tokens among ids, in order."""
        return [i for i in ids if i in self.control]


def _unknown(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of the unknown token, if the tokenizer really uses it for text.

    Many tokenizers merely name their end-of-text token as the unknown one.
    """
    model = tokenizer.backend_tokenizer.model if tokenizer.is_fast else None
    never = model is not None and getattr(model, "unk_token", None) is None
    unigram = type(model).__name__ == "Unigram"
    return None if never and not unigram else cast(int | None, tokenizer.unk_token_id)
