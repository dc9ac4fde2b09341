"""Splits a tokenizer's chat template into the pieces of markup around the contents of a dialogue.

The template renders short dialogues whose contents are placeholders; the text between the
placeholders is the markup. No model family gets special treatment.
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
"""User turns of the longest placeholder dialogue: templates may treat later turns differently."""
USER = tuple(f"\ue000user{i}\ue000" for i in range(TURNS))
ASSISTANT = tuple(f"\ue000assistant{i}\ue000" for i in range(TURNS))
Tool = dict[Any, Any] | Callable[..., Any]
"""A function schema, typed as in transformers' signature."""
Message = dict[str, Any]
"""A message as chat templates take it: role, content, tool calls."""
DAY = datetime(2024, 7, 26)
"""The date that templates get as today's, so that token ids do not depend on the day."""
NOW = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f"|replace('%{code}', '{DAY.strftime('%' + code)}')" for code in "aAbBdHIjmMpSyY")
    + " }}{% endmacro %}"
)
"""Macro put before a template to replace the function that reads the clock."""
CALL_ID = "call00000"
"""Nine letters and digits, which Mistral's template requires."""
TOOL_NAME = "toolname0mark"
"""Name of the tool in a placeholder dialogue."""


class TemplateError(ValueError):
    """A chat template cannot render dialogues losslessly by appending; the message is one line."""


class Space(NamedTuple):
    """Spaces that a template writes before contents; they are tokenized with the first word."""

    user: str
    assistant: str


class Markup(NamedTuple):
    """The text that a template writes around the contents of a dialogue."""

    before: str
    """Before the first user content."""
    ask: str
    """After a user content: the generation prompt."""
    lead: str
    """Between `ask` and the assistant's content, often empty; counts as part of the action."""
    end: str
    """After the assistant's content, at the end of the dialogue."""
    past: str
    """Between the user's and the assistant's content of an earlier turn."""
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
    """Renders messages as text; `ask` adds the generation prompt. Raises `TemplateError`."""
    if not tokenizer.chat_template:
        name = printable(tokenizer.name_or_path or "tokenizer", limit=4096)
        raise TemplateError(
            f"{name}: no chat template; use an instruction-tuned model, or put its template into "
            "the model folder as chat_template.jinja"
        )
    shown = [*tools] or None
    names: dict[str, Any] = {
        **tokenizer.special_tokens_map,
        "enable_thinking": False,  # the action comes directly, without a thinking block
        "date_string": DAY.strftime("%d %b %Y"),
    }
    try:
        # Not `apply_chat_template`, which removes fields that are None: DeepSeek's templates write
        # a call only if the content is None. Templates ignore variables that they do not know.
        rendered = render_jinja_template(
            [[*messages]],
            tools=cast(Any, shown),
            chat_template=NOW + tokenizer.get_chat_template(tools=cast(Any, shown)),
            add_generation_prompt=ask,
            **names,
        )
    except Exception as error:  # a template is a program and can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TemplateError(f"chat template: {printable(reason, limit=300)}") from None
    return rendered[0][0]


def dialogue_markup(tokenizer: PreTrainedTokenizerBase, tools: Sequence[Tool] = ()) -> str:
    """The text that the template writes between and after the contents of a short dialogue."""
    dialogue = [
        {"role": role, "content": content}
        for role, content in zip(
            ("user", "assistant", "user"), (USER[0], ASSISTANT[0], USER[1]), strict=True
        )
    ]
    text = render_messages(tokenizer, dialogue, tools, ask=True)
    # From the first content on: a default system message before it is ordinary text.
    return text.partition(USER[0])[2]


def split_template(
    encoder: Encoder,
    tools: Sequence[Tool] = (),
    *,
    call: tuple[Message, str] | None = None,
) -> Markup:
    """Splits the template's rendering of a dialogue between user and assistant into its markup.

    With `call`, a message with a tool call and the template's text for it, every assistant turn is
    that call and later user turns are tool results. Raises `TemplateError` if the markup of later
    turns differs from the first.
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
        """The markup before, between and after the first `count` contents."""
        rest = render_messages(encoder.tokenizer, dialogue[:count], tools, ask=ask)
        found = []
        for content in contents[:count]:
            piece, mark, rest = rest.partition(content)
            if not mark:
                raise TemplateError("chat template: drops or reorders messages")
            found.append(piece)
        if TOOL_NAME in "".join([*found, rest]):
            raise TemplateError("chat template: writes the tool's name next to its result")
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
    """The generation prompt, and the markup between it and the content of an action.

    `ask` is the template's own generation prompt, `live` its markup before the content of the last
    assistant turn.
    """
    if live.startswith(ask):
        return ask, live[len(ask) :]
    if ask.startswith(live):
        # The generation prompt opens a thinking block, which a plain answer does not have. A block
        # that is closed again is kept, since the model was trained to read it.
        added = len(encoder.controls(encoder.markup(ask[len(live) :])))
        is_closed = added > 0 and added % 2 == 0
        return (ask if is_closed else live), ""
    marks = encoder.control.values()
    last_mark = max((ask.rfind(mark) for mark in marks if mark in ask), default=0)
    if live.endswith(ask[last_mark:]):  # they differ only in the user's turn before
        return ask, ""
    # The prompt opens a block where an answer opens or closes a different one.
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(ask, live, strict=False))
    common = "".join(letter for letter, _ in pairs)
    shared = max((common.rfind(mark) + len(mark) for mark in marks if mark in common), default=0)
    if not shared or not encoder.controls(encoder.markup(ask[shared:])):
        raise TemplateError("chat template: its generation prompt does not match an answer's start")
    return live[:shared], live[shared:]


def _end_of_turn(encoder: Encoder, last: str, between: str) -> str:
    """The markup that ends an assistant turn, up to the first control token after its content.

    A line break after that token belongs to the next turn. Some templates end the last turn with
    nothing, or with another token than earlier turns: then the end of earlier turns is used, even
    if that is only the marker of the next turn.
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
    """The trailing spaces, not line breaks, of a piece of markup."""
    return markup[len(markup.rstrip(" ")) :]
