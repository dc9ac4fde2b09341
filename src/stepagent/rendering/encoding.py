"""Text to token ids and back: markup may write control tokens, content never does.

A control token is an added token of the tokenizer that marks something: every special one, every
one that the chat template writes around contents, and every other that is more than a word, blank
space or one character. Whether the tokenizer calls it special does not matter: `<think>` and
`<tool_call>` often are not.
"""

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import cast

from transformers import BatchEncoding, PreTrainedTokenizerBase

_WORD = re.compile(r"[\w\s'-]*")
"""Added tokens of this form are vocabulary, such as a name that a user has added."""

_SHOWN = 60
"""Characters of a text in a message."""


class EncodingError(ValueError):
    """The tokenizer cannot write a text; the message is one line."""


class Encoder:
    """One tokenizer, used so that text of tasks and models stays text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, written: str = "") -> None:
        """Finds out which of the tokenizer's tokens are control tokens.

        `written` is what its chat template writes around contents.
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
        """Control tokens by their ids."""
        self._anchors = [(text, self._plain(text)) for text in ("\n", "x")]

    def markup(self, text: str, *, behind: str = "") -> list[int]:
        """Ids of text that a chat template wrote; control tokens in it count as such.

        `behind` is markup that it stands behind: some tokenizers begin texts with a space of their
        own.
        """
        before, whole = self._encode(behind), self._encode(behind + text)
        return whole[len(before) :] if whole[: len(before)] == before else self._encode(text)

    def content(self, text: str, space: str = "", head: str = "") -> list[int]:
        """Ids of somebody's text that follows markup, without any control token.

        `space` is what the template puts before it, and `head` the plain text that follows it, up
        to the next control token: tokenizers join a full stop and a line break, for one. Raises
        `EncodingError` if the tokenizer turns the text into a control token however it is cut.
        """
        ids: list[int] = []
        # Lone surrogates, which environments of others can return, are no text.
        parts = [space + text.encode("utf-8", "replace").decode().strip() + head]
        while parts:
            part = parts.pop()
            found = self._behind_anchor(part)
            if self.control.keys().isdisjoint(found):
                ids += found
            else:
                # The tokenizer reads marks in the text, if only after it has normalised it. Two
                # halves of a mark are no mark.
                cuts = [0, *self._inside_marks(part), len(part)]
                parts += [part[start:end] for start, end in reversed([*pairwise(cuts)])]
        return ids

    def split_head(self, markup: str) -> tuple[str, str]:
        """Markup up to its first control token, and from there on; no head if there is none."""
        places = [markup.index(mark) for mark in self.control.values() if mark in markup]
        head = min(places, default=0)
        return markup[:head], markup[head:]

    def _behind_anchor(self, text: str) -> list[int]:
        # A line break hardly ever joins with what follows it, and where it does, a letter does not;
        # with one of them in front, tokenizers that begin every text with a space of their own do
        # not put one between markup and content.
        for anchor, before in self._anchors:
            ids = self._plain(anchor + text)
            if ids[: len(before)] == before:
                return ids[len(before) :]
        raise EncodingError("the tokenizer joins a text with what stands before it")

    def _inside_marks(self, text: str) -> list[int]:
        """A place within each mark that the tokenizer reads in a text."""
        cuts = []
        for start, end in sorted(set(self._marks(text))):
            cut = (start + end) // 2
            if not start < cut < end:
                mark = text[max(start, 0) : end]
                raise EncodingError(f"the tokenizer turns {mark!r} into a control token")
            cuts.append(cut)
        if not cuts:
            raise EncodingError("the tokenizer turns a part of the text into a control token")
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
            # A panic inside the tokenizers library, which its binding keeps apart from Exception.
            if type(error).__name__ != "PanicException":
                raise
            start = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
            raise EncodingError(f"the tokenizer breaks down on {start!r}") from None

    def text(self, ids: list[int], *, with_control: bool = False) -> str:
        """What ids say; special tokens are left out unless they are asked for."""
        decoded = self.tokenizer.decode(
            ids, skip_special_tokens=not with_control, clean_up_tokenization_spaces=False
        )
        return cast(str, decoded)

    def controls(self, ids: list[int]) -> list[int]:
        """The control tokens among ids, in order."""
        return [i for i in ids if i in self.control]


def _unknown(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that stands for what the vocabulary lacks, if texts are really written with it.

    Many tokenizers only call their end-of-text token the unknown one as well.
    """
    model = tokenizer.backend_tokenizer.model if tokenizer.is_fast else None
    never = model is not None and getattr(model, "unk_token", None) is None
    unigram = type(model).__name__ == "Unigram"
    return None if never and not unigram else cast(int | None, tokenizer.unk_token_id)
