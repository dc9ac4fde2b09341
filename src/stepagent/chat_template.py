"""A tokenizer's chat template, taken apart into the markup around the contents of a dialogue.

Short dialogues of marks are rendered by the template itself; what stands between the marks is the
markup. Nothing is known of any family of models.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple, cast

import jinja2
from transformers import PreTrainedTokenizerBase

USER = tuple(f"\ue000user{i}\ue000" for i in range(3))
ASSISTANT = tuple(f"\ue000assistant{i}\ue000" for i in range(2))
Tool = dict[Any, Any] | Callable[..., Any]
"""A function schema, with the types that transformers' signature asks for."""
DAY = datetime(2024, 7, 26)
"""What templates are told today is."""
CALL_ID = "call00000"
"""Nine letters and digits, as Mistral's template wants them."""


class TemplateError(ValueError):
    """The chat template cannot be used for dialogues that grow by appending."""


class Space(NamedTuple):
    """Spaces that a template puts before contents; they are encoded with the first word."""

    user: str
    assistant: str


class Markup(NamedTuple):
    """What a template writes around the contents of a dialogue."""

    before: str
    """Before the first user content."""
    ask: str
    """After a user content, when the assistant is to speak."""
    lead: str
    """Between `ask` and the assistant's content, if anything: said with the action."""
    end: str
    """After the assistant's content, at the end of the dialogue."""
    past: str
    """Between user and assistant content in an earlier turn."""
    between: str
    """After `end`, before the next user content."""
    suffix: str
    """After a later observation, before `ask`."""
    space: Space


def render_messages(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, Any]],
    tools: list[Tool] | None,
    *,
    ask: bool,
) -> str:
    """The text of messages; `ask` adds what makes the assistant speak."""
    # Templates ignore names that they do not know.
    try:
        rendered = tokenizer.apply_chat_template(
            messages,
            tools=tools,
            tokenize=False,
            add_generation_prompt=ask,
            enable_thinking=False,  # the action comes at once, without a block to fill first
            # Some would write today's date; ids must not depend on it.
            date_string=DAY.strftime("%d %b %Y"),
            strftime_now=DAY.strftime,
        )
    except jinja2.TemplateError as error:  # what templates raise for dialogues they do not take
        raise TemplateError(f"chat template: {error}") from None
    return cast(str, rendered)


def take_apart(tokenizer: PreTrainedTokenizerBase, role: str, tools: list[Tool] | None) -> Markup:
    """The markup of a dialogue whose later observations have that role, `user` or `tool`."""
    if not tokenizer.chat_template:
        raise TemplateError("tokenizer: expected a chat template, found none")
    contents = [text for pair in zip(USER, (*ASSISTANT, ""), strict=True) for text in pair]

    def pieces(count: int, *, ask: bool) -> list[str]:
        """The text around the first `count` contents."""
        roles = ("user", "assistant", role, "assistant", role)
        messages = [
            {"role": role, "content": content}
            for role, content in zip(roles[:count], contents[:count], strict=True)
        ]
        rest = render_messages(tokenizer, messages, tools, ask=ask)
        found = []
        for content in contents[:count]:
            piece, mark, rest = rest.partition(content)
            if not mark:
                raise TemplateError("chat template: leaves out or reorders messages")
            found.append(piece)
        return [*found, rest]

    before, ask = pieces(1, ask=True)
    _, live, end = pieces(2, ask=False)
    _, past, between, last = pieces(3, ask=True)
    suffix = last.removesuffix(ask)
    again = pieces(5, ask=True)
    if not last.endswith(ask) or again != [
        before, past, between, suffix + past, between, suffix + ask,
    ]:  # fmt: skip
        raise TemplateError("chat template: later turns are marked differently from the first")
    end = _end_of_turn(tokenizer, end, between)
    lead = live.removeprefix(ask) if live.startswith(ask) else ""
    if ask.startswith(live):
        # What the template adds opens a block of thinking, which a plain answer does not have.
        ask = live
    between = between[len(end) :]
    user, later, assistant = _spaces(before), _spaces(between), _spaces(ask + lead)
    if (role == "user" and later != user) or _spaces(past) != assistant:
        raise TemplateError("chat template: later turns are marked differently from the first")
    strip = len(assistant)
    return Markup(
        before=before.removesuffix(user),
        ask=ask if lead else ask[: len(ask) - strip],
        lead=lead[: len(lead) - strip] if lead else "",
        end=end,
        past=past[: len(past) - strip],
        between=between.removesuffix(later),
        suffix=suffix,
        space=Space(later, assistant),
    )


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, last: str, between: str) -> str:
    """What closes the last assistant turn and earlier ones alike: up to the first control token.

    The line break that may follow belongs to the next turn; some templates end the whole dialogue
    with one more token.
    """
    ends = [last.index(t) + len(t) for t in tokenizer.added_tokens_encoder if t in last]
    end = last[: min(ends)] if ends else last.rstrip("\n")
    return end if between.startswith(end) else ""


def _spaces(markup: str) -> str:
    """The spaces, not line breaks, that a piece of markup ends with."""
    return markup[len(markup.rstrip(" ")) :]
