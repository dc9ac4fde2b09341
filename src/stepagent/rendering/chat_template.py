"""A tokenizer's chat template, taken apart into the markup around the contents of a dialogue.

Short dialogues of marks are rendered by the template itself; what stands between the marks is the
markup. Nothing is known of any family of models.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import takewhile
from typing import Any, NamedTuple, cast

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from stepagent.console.printable import printable
from stepagent.rendering.encoding import Encoder

TURNS = 8
"""User turns of the longest dialogue of marks: templates may treat later turns in another way."""
USER = tuple(f"\ue000user{i}\ue000" for i in range(TURNS))
ASSISTANT = tuple(f"\ue000assistant{i}\ue000" for i in range(TURNS))
Tool = dict[Any, Any] | Callable[..., Any]
"""A function schema, with the types that transformers' signature asks for."""
Message = dict[str, Any]
"""A message, as chat templates take it."""
DAY = datetime(2024, 7, 26)
"""What templates are told today is, so that ids do not depend on the day."""
NOW = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f"|replace('%{code}', '{DAY.strftime('%' + code)}')" for code in "aAbBdHIjmMpSyY")
    + " }}{% endmacro %}"
)
"""Put before a template, in place of the function that asks the clock."""
CALL_ID = "call00000"
"""Nine letters and digits, as Mistral's template wants them."""
TOOL_NAME = "toolname0mark"
"""Who answers in a dialogue of marks."""


class TemplateError(ValueError):
    """The chat template cannot be used for dialogues that grow by appending; one line."""


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
    messages: Sequence[Message],
    tools: Sequence[Tool],
    *,
    ask: bool,
) -> str:
    """The text of messages; `ask` adds what makes the assistant speak."""
    if not tokenizer.chat_template:
        raise TemplateError("tokenizer: expected a chat template, found none")
    shown = [*tools] or None
    names: dict[str, Any] = {
        **tokenizer.special_tokens_map,
        "enable_thinking": False,  # the action comes at once, without a block to fill first
        "date_string": DAY.strftime("%d %b %Y"),
    }
    try:
        # Not by `apply_chat_template`, which takes out fields that are None: DeepSeek's templates
        # write a call only where the content is None. Names that a template does not know are
        # ignored by it.
        rendered = render_jinja_template(
            [[*messages]],
            tools=cast(Any, shown),
            chat_template=NOW + tokenizer.get_chat_template(tools=cast(Any, shown)),
            add_generation_prompt=ask,
            **names,
        )
    except Exception as error:  # a template is a program: it can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TemplateError(f"chat template: {printable(reason, limit=300)}") from None
    return rendered[0][0]


def around_contents(tokenizer: PreTrainedTokenizerBase, tools: Sequence[Tool] = ()) -> str:
    """All that the template writes between the contents of a short dialogue."""
    dialogue = [
        {"role": role, "content": content}
        for role, content in zip(
            ("user", "assistant", "user"), (USER[0], ASSISTANT[0], USER[1]), strict=True
        )
    ]
    text = render_messages(tokenizer, dialogue, tools, ask=True)
    # Behind the first content only: what a system message says before it is text like any other.
    return text.partition(USER[0])[2]


def take_apart(
    encoder: Encoder,
    tools: Sequence[Tool] = (),
    *,
    call: tuple[Message, str] | None = None,
) -> Markup:
    """The markup of a dialogue between user and assistant.

    `call` is an assistant's message that calls a tool, and how the template writes the call. Given
    that, the assistant says nothing else, and later observations are answers of the tool.
    """
    said = [call] * TURNS if call else [({"role": "assistant", "content": t}, t) for t in ASSISTANT]
    observed: Message = {"role": "user"}
    if call:
        observed = {"role": "tool", "tool_call_id": CALL_ID, "name": TOOL_NAME}
    dialogue: list[Message] = []
    contents: list[str] = []
    for number, (message, text) in enumerate(said):
        seen = observed if number else {"role": "user"}
        dialogue += [seen | {"content": USER[number]}, message]
        contents += [USER[number], text]

    def pieces(count: int, *, ask: bool) -> list[str]:
        """The text around the first `count` contents."""
        rest = render_messages(encoder.tokenizer, dialogue[:count], tools, ask=ask)
        found = []
        for content in contents[:count]:
            piece, mark, rest = rest.partition(content)
            if not mark:
                raise TemplateError("chat template: leaves out or reorders messages")
            found.append(piece)
        if TOOL_NAME in "".join([*found, rest]):
            raise TemplateError("chat template: names the tool beside its answer")
        return [*found, rest]

    before, ask = pieces(1, ask=True)
    _, live, end = pieces(2, ask=False)
    _, past, between, last = pieces(3, ask=True)
    suffix = last.removesuffix(ask)
    middle = [between, suffix + past] * (TURNS - 2)
    again = pieces(2 * TURNS - 1, ask=True)
    if not last.endswith(ask) or again != [before, past, *middle, between, suffix + ask]:
        raise TemplateError("chat template: later turns are marked differently from the first")
    end = _end_of_turn(encoder, end, between)
    ask, lead = _ask_and_lead(encoder, ask, live)
    between = between[len(end) :]
    user, later, assistant = _spaces(before), _spaces(between), _spaces(ask + lead)
    if (later != user and not call) or _spaces(past) != assistant:
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


def _ask_and_lead(encoder: Encoder, ask: str, live: str) -> tuple[str, str]:
    """What asks for an action, and what is said with it before its content.

    `ask` is what the template adds to make the assistant speak, `live` what it writes before what
    the assistant has said last.
    """
    if live.startswith(ask):
        return ask, live[len(ask) :]
    if ask.startswith(live):
        # What is added opens a block of thinking, which a plain answer does not have; but one that
        # is closed again belongs to what the model is used to read.
        added = len(encoder.controls(encoder.markup(ask[len(live) :])))
        is_closed = added > 0 and added % 2 == 0
        return (ask if is_closed else live), ""
    marks = encoder.control.values()
    last_mark = max((ask.rfind(mark) for mark in marks if mark in ask), default=0)
    if live.endswith(ask[last_mark:]):  # only the user's turn before it is written otherwise
        return ask, ""
    # It opens a block where an answer opens or closes another one.
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(ask, live, strict=False))
    common = "".join(letter for letter, _ in pairs)
    shared = max((common.rfind(mark) + len(mark) for mark in marks if mark in common), default=0)
    if not shared or not encoder.controls(encoder.markup(ask[shared:])):
        raise TemplateError("chat template: asks for an action in another way than it writes one")
    return live[:shared], live[shared:]


def _end_of_turn(encoder: Encoder, last: str, between: str) -> str:
    """What closes assistant turns: up to the first control token behind the content.

    The line break that may follow belongs to the next turn. Some templates write nothing behind the
    last turn, or another token than behind earlier ones: then it is what those end with, if only
    the mark of the next turn.
    """
    for text in (last, between):
        marks = [(text.index(t), -len(t)) for t in encoder.control.values() if t in text]
        if marks:
            start, length = min(marks)
            end = text[: start - length]
            if between.startswith(end) and (text is last or not text[:start].strip()):
                return end
    end = last.rstrip("\n")
    return end if between.startswith(end) else ""


def _spaces(markup: str) -> str:
    """The spaces, not line breaks, that a piece of markup ends with."""
    return markup[len(markup.rstrip(" ")) :]
