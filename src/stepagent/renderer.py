"""Messages to token ids and back. Ids are made here or sampled by the policy, once, and then kept.

A trajectory is a dialogue: the user turn at step t holds the observation (the first one the
instruction too), the assistant turn the action. The tokenizer's own chat template decides how turns
are marked. It is taken apart once, on short dialogues of marks, into the pieces around the
contents, so that a dialogue grows by appending ids and never has to be rendered again:

    history 0     = opening(instruction, observation 0)
    history t + 1 = history t + past(action t) + observation(observation t + 1)
    state t       = history t + ask                  what the policy reads before it says action t

With most templates past(a) = ask + a: each state is a prefix of the next one. Some rewrite earlier
turns, as Qwen3 does, which drops their thinking block. Then states share their histories only, and
`ask` and action are a branch of their own; the prefix tree holds both kinds alike.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

from transformers import PreTrainedTokenizerBase

from stepagent.types import Trajectory

_USER = tuple(f"\ue000user{i}\ue000" for i in range(3))
_ASSISTANT = tuple(f"\ue000assistant{i}\ue000" for i in range(2))


class TemplateError(ValueError):
    """The chat template cannot be used for dialogues that grow by appending."""


class Said(NamedTuple):
    """What an action's ids say."""

    thought: str
    """Empty if there was none."""
    action: str


@dataclass(frozen=True)
class RenderedTrajectory:
    """A trajectory as token ids."""

    trajectory: Trajectory
    additions: tuple[tuple[int, ...], ...]
    """One for each step: what it adds to the history, from the action before to its observation."""
    ask: tuple[int, ...]
    """Follows the history and asks for an action."""
    actions: tuple[tuple[int, ...], ...]
    """One for each step; ends with the end-of-turn token."""

    @property
    def states(self) -> Iterator[list[int]]:
        """For each step all that is read before its action."""
        history: list[int] = []
        for addition in self.additions:
            history += addition
            yield [*history, *self.ask]

    @property
    def num_tokens(self) -> int:
        """Longest sequence, in tokens."""
        pairs = zip(self.states, self.actions, strict=True)
        return max(len(state) + len(action) for state, action in pairs)


class Renderer:
    """Instructions, observations and actions as token ids, by one tokenizer's chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Takes the chat template apart; raises `TemplateError` if that cannot be done."""
        self.tokenizer = tokenizer
        markup = _take_apart(tokenizer)
        self._space = markup.space
        self._before = self._encode_markup(markup.before)
        self.ask = tuple(self._encode_markup(markup.ask))
        self._lead = self._encode_markup(markup.lead)
        end = self._encode_markup(markup.end)
        special = [i for i, token in enumerate(end) if token in tokenizer.all_special_ids]
        if not end:
            raise TemplateError("chat template: nothing marks the end of an assistant turn")
        self._close = end[: special[0] + 1] if special else end[:1]
        self.end_id = self._close[-1]
        """The token that ends an action."""
        # Encoded behind the end token, where it will stand: some tokenizers begin texts with a
        # space of their own.
        after = self._encode_markup(markup.end + markup.between)
        if after[: len(end)] != end:
            raise TemplateError("chat template: joins the end of a turn with the next one")
        self._next_turn = after[len(self._close) :]
        self._past_lead = self._encode_markup(markup.past)
        self.is_stable = markup.past == markup.ask + markup.lead
        """Whether each state is a prefix of the next one."""
        self._anchor = self._encode_plain("\n")

    def _encode_markup(self, text: str) -> list[int]:
        return cast(list[int], self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _encode_plain(self, text: str) -> list[int]:
        # Text of tasks and models must not be able to write control tokens.
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return cast(list[int], encoded["input_ids"])

    def _encode_content(self, text: str, space: str) -> list[int]:
        # A line break never joins with what follows it; with it in front, tokenizers that begin
        # every text with a space of their own do not put one between markup and content.
        encoded = self._encode_plain("\n" + space + text.strip())
        return encoded[len(self._anchor) :]

    def opening(self, instruction: str, observation: str) -> tuple[int, ...]:
        """Ids of the first history."""
        content = f"{instruction}\n\n{observation}"
        return (*self._before, *self._encode_content(content, self._space.user))

    def observation(self, observation: str) -> tuple[int, ...]:
        """Ids of a later observation, which follow `past` of the action before."""
        return (*self._next_turn, *self._encode_content(observation, self._space.user))

    def action(self, action: str, thought: str = "") -> tuple[int, ...]:
        """Ids of an action that was given as text, with its end-of-turn token."""
        said = f"Thought: {thought}\nAction: {action}" if thought else action
        return (*self._lead, *self._encode_content(said, self._space.assistant), *self._close)

    def past(self, action: Sequence[int]) -> tuple[int, ...]:
        """Ids of an action as later histories hold it; one that was cut off is closed."""
        closed = action if action[-1] == self.end_id else (*action, *self._close)
        if self.is_stable:
            return (*self.ask, *closed)
        lead = len(self._lead)
        content = closed[lead:] if list(closed[:lead]) == self._lead else closed
        return (*self._past_lead, *content)

    def parse(self, action: Sequence[int]) -> Said:
        """The text of an action's ids, ReAct's `Thought: ... Action: ...` taken apart."""
        text = cast(str, self.tokenizer.decode(list(action), skip_special_tokens=True)).strip()
        if text.startswith("Thought:") and "Action:" in text:
            thought, _, text = text.removeprefix("Thought:").rpartition("Action:")
            return Said(thought.strip(), text.strip())
        return Said("", text)

    def render(self, trajectory: Trajectory) -> RenderedTrajectory:
        """The whole trajectory as ids."""
        actions = tuple(self.action(step.action, step.thought) for step in trajectory.steps)
        first, *later = trajectory.steps
        return RenderedTrajectory(
            trajectory=trajectory,
            additions=(
                self.opening(trajectory.instruction, first.observation),
                *(
                    (*self.past(before), *self.observation(step.observation))
                    for before, step in zip(actions[:-1], later, strict=True)
                ),
            ),
            ask=self.ask,
            actions=actions,
        )


class _Space(NamedTuple):
    """Spaces that a template puts before contents; they are encoded with the first word."""

    user: str
    assistant: str


class _Markup(NamedTuple):
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
    space: _Space


def _take_apart(tokenizer: PreTrainedTokenizerBase) -> _Markup:
    if not tokenizer.chat_template:
        raise TemplateError("tokenizer: expected a chat template, found none")
    contents = [text for pair in zip(_USER, (*_ASSISTANT, ""), strict=True) for text in pair]

    def pieces(count: int, *, ask: bool) -> list[str]:
        """The text around the first `count` contents."""
        roles = ("user", "assistant") * 3
        messages = [
            {"role": role, "content": content}
            for role, content in zip(roles[:count], contents[:count], strict=True)
        ]
        # Templates ignore names that they do not know.
        rendered = tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=ask,
            enable_thinking=False,  # the action comes at once, without a block to fill first
            date_string="26 Jul 2024",  # Llama 3 would write today's; ids must not depend on it
        )
        rest = cast(str, rendered)
        found = []
        for content in contents[:count]:
            piece, mark, rest = rest.partition(content)
            if not mark:
                raise TemplateError("chat template: leaves out or reorders messages")
            found.append(piece)
        return [*found, rest]

    before, ask = pieces(1, ask=True)
    _, live, end = pieces(2, ask=False)
    _, past, between, _ = pieces(3, ask=True)
    if pieces(5, ask=True) != [before, past, between, past, between, ask]:
        raise TemplateError("chat template: later turns are marked differently from the first")
    # The line break that may follow an end token belongs to the next turn.
    end = end.rstrip("\n") if between.startswith(end.rstrip("\n")) else ""
    lead = live.removeprefix(ask) if live.startswith(ask) else ""
    if ask.startswith(live):
        # What the template adds opens a block of thinking, which a plain answer does not have.
        ask = live
    past, between = past, between[len(end) :]
    user, assistant = _spaces(before), _spaces(ask + lead)
    if _spaces(between) != user or _spaces(past) != assistant:
        raise TemplateError("chat template: later turns are marked differently from the first")
    strip = len(assistant)
    return _Markup(
        before=before.removesuffix(user),
        ask=ask if lead else ask[: len(ask) - strip],
        lead=lead[: len(lead) - strip] if lead else "",
        end=end,
        past=past[: len(past) - strip],
        between=between.removesuffix(user),
        space=_Space(user, assistant),
    )


def _spaces(markup: str) -> str:
    """The spaces, not line breaks, that a piece of markup ends with."""
    return markup[len(markup.rstrip(" ")) :]
