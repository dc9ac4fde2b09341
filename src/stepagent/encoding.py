"""Text to token ids and back: markup may write control tokens, content never does.

A control token is an added token of the tokenizer that marks something: every special one, every
one that stands in the chat template, and every one that is not simply a word or blank space.
Whether the tokenizer calls it special does not matter: `<think>` and `<tool_call>` often are not.
"""

import re
from typing import cast

from transformers import PreTrainedTokenizerBase

_WORD = re.compile(r"[\w\s'-]*")
"""Added tokens of this form are vocabulary, such as a name that a user has added."""


class EncodingError(ValueError):
    """The tokenizer cannot write a text; the message is one line."""


class Encoder:
    """One tokenizer, used so that text of tasks and models stays text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Finds out which of the tokenizer's tokens are control tokens."""
        self.tokenizer = tokenizer
        template = str(tokenizer.chat_template or "")
        special = {*tokenizer.all_special_ids}
        self.control = {
            number: str(token)
            for number, token in tokenizer.added_tokens_decoder.items()
            # The unknown token is no mark: it stands for what the vocabulary lacks.
            if str(token).strip()
            and number != tokenizer.unk_token_id
            and (number in special or str(token) in template or not _WORD.fullmatch(str(token)))
        }
        """Control tokens by their ids."""
        self._anchor = self._plain("\n")

    def markup(self, text: str) -> list[int]:
        """Ids of text that a chat template wrote; control tokens in it count as such."""
        return cast(list[int], self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def content(self, text: str, space: str = "") -> list[int]:
        """Ids of somebody's text that follows markup, without any control token.

        `space` is what the template puts before it. Raises `EncodingError` if the tokenizer turns
        the text into a control token however it is cut.
        """
        return self._content(space + text.strip())

    def _content(self, text: str) -> list[int]:
        # A line break never joins with what follows it; with it in front, tokenizers that begin
        # every text with a space of their own do not put one between markup and content.
        ids = self._plain("\n" + text)
        if ids[: len(self._anchor)] != self._anchor:
            raise EncodingError("the tokenizer joins a line break with the text that follows it")
        ids = ids[len(self._anchor) :]
        if self.control.keys().isdisjoint(ids):
            return ids
        # The tokenizer reads a mark in the text, if only after it has normalised it. Two halves of
        # a mark are no mark.
        cut = self._inside_control(text)
        return self._content(text[:cut]) + self._content(text[cut:])

    def _inside_control(self, text: str) -> int:
        """A place within the first mark of a text."""
        if self.tokenizer.is_fast:
            encoded = self.tokenizer(
                "\n" + text,
                add_special_tokens=False,
                split_special_tokens=True,
                return_offsets_mapping=True,
            )
            pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            places = [place for number, place in pairs if number in self.control]
            start, end = int(places[0][0]) - 1, int(places[0][1]) - 1
        else:
            found = [(text.find(t), len(t)) for t in self.control.values() if t in text]
            start, length = min(found, default=(0, 0))
            end = start + length
        cut = (start + end) // 2
        if not start < cut < end:
            raise EncodingError(f"the tokenizer turns {text[start:end]!r} into a control token")
        return cut

    def _plain(self, text: str) -> list[int]:
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return cast(list[int], encoded["input_ids"])

    def text(self, ids: list[int], *, with_control: bool = False) -> str:
        """What ids say; special tokens are left out unless they are asked for."""
        decoded = self.tokenizer.decode(
            ids, skip_special_tokens=not with_control, clean_up_tokenization_spaces=False
        )
        return cast(str, decoded)

    def controls(self, ids: list[int]) -> list[int]:
        """The control tokens among ids, in order."""
        return [i for i in ids if i in self.control]

    def writes_control(self, text: str) -> bool:
        """Whether a template that writes this text as it stands would write a control token."""
        return bool(self.controls(self.markup(text)))
