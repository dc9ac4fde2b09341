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

A trajectory with tools has its calls and what they return as the template writes those.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from pydantic import JsonValue
from transformers import PreTrainedTokenizerBase

from stepagent.actions import Call, Said, call_of, split_react, written_call
from stepagent.chat_template import (
    CALL_ID,
    USER,
    Markup,
    TemplateError,
    Tool,
    render_messages,
    take_apart,
)
from stepagent.types import Trajectory


class CallError(ValueError):
    """A tool call cannot be rendered."""


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

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, tools: Sequence[dict[str, JsonValue]] = ()
    ) -> None:
        """Takes the chat template apart; raises `TemplateError` if that cannot be done.

        `tools` are function schemas, for trajectories whose actions call them.
        """
        self.tokenizer = tokenizer
        self._tools: list[Tool] | None = list(tools) or None
        if any(token in json.dumps(tools) for token in tokenizer.added_tokens_encoder):
            raise CallError("tools: a schema has a control token of the model in its text")
        markup = take_apart(tokenizer, "user", self._tools)
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
        self._next_turn = self._behind_end(markup)
        self._past_lead = self._encode_markup(markup.past)
        self.is_stable = markup.past == markup.ask + markup.lead
        """Whether each state is a prefix of the next one."""
        self._anchor = self._encode_plain("\n")
        self._markup = markup
        self._with_tools: dict[str, Renderer] = {}
        if self._tools:
            self._read_tool_turns(markup)

    def _behind_end(self, markup: Markup) -> list[int]:
        # Encoded behind the end token, where it will stand: some tokenizers begin texts with a
        # space of their own.
        end, after = (self._encode_markup(t) for t in (markup.end, markup.end + markup.between))
        if after[: len(end)] != end:
            raise TemplateError("chat template: joins the end of a turn with the next one")
        return after[len(self._close) :]

    def _read_tool_turns(self, user: Markup) -> None:
        """What the template puts around a tool's answer, beside what is around a user's."""
        tool = take_apart(self.tokenizer, "tool", self._tools)
        if tool._replace(between=user.between, suffix="", space=user.space) != user:
            raise TemplateError(
                "chat template: an action after a tool's answer is marked otherwise"
            )
        self._tool_turn = self._behind_end(tool)
        self._tool_space = tool.space.user
        self._tool_suffix = self._encode_markup(tool.suffix)

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

    def answer(self, observation: str) -> tuple[int, ...]:
        """Ids of what a tool returned, which follow `past` of the call."""
        content = self._encode_content(observation, self._tool_space)
        return (*self._tool_turn, *content, *self._tool_suffix)

    def action(self, action: str, thought: str = "") -> tuple[int, ...]:
        """Ids of an action that was given as text, with its end-of-turn token."""
        if self._tools and (call := call_of(action)):
            return (*self._lead, *self._encode_call(call, thought), *self._close)
        said = f"Thought: {thought}\nAction: {action}" if thought else action
        return (*self._lead, *self._encode_content(said, self._space.assistant), *self._close)

    def _encode_call(self, call: Call, thought: str) -> list[int]:
        """A call as the template writes it, with the thought as the text before it."""
        texts = [thought, call.action()]
        if any(t in text for t in self.tokenizer.added_tokens_encoder for text in texts):
            raise ValueError(
                f"a call of {call.name!r} has a control token of the model in its text"
            )
        function = {"type": "function", "id": CALL_ID, "function": call.model_dump()}
        written = render_messages(
            self.tokenizer,
            [
                {"role": "user", "content": USER[0]},
                {"role": "assistant", "content": thought, "tool_calls": [function]},
            ],
            self._tools,
            ask=False,
        )
        markup = self._markup
        start = f"{USER[0]}{markup.ask}{markup.lead}"
        _, found, said = written.partition(start)
        if not found or markup.end not in said:
            raise TemplateError("chat template: writes a call elsewhere than after its mark")
        return self._encode_markup(said[: said.rindex(markup.end)])

    def past(self, action: Sequence[int]) -> tuple[int, ...]:
        """Ids of an action as later histories hold it; one that was cut off is closed."""
        closed = action if action[-1] == self.end_id else (*action, *self._close)
        if self.is_stable:
            return (*self.ask, *closed)
        lead = len(self._lead)
        content = closed[lead:] if list(closed[:lead]) == self._lead else closed
        return (*self._past_lead, *content)

    def parse(self, action: Sequence[int]) -> Said:
        """The text of an action's ids: ReAct's `Thought: ... Action: ...` and calls taken apart."""
        ids, lead = list(action), len(self._lead)
        if ids[:lead] == self._lead:
            ids = ids[lead:]
        if ids[-len(self._close) :] == self._close:
            ids = ids[: -len(self._close)]
        text = cast(str, self.tokenizer.decode(ids, skip_special_tokens=True)).strip()
        if self._tools and (call := written_call(text)):
            return Said("", call.action())
        return split_react(text) if text.startswith("Thought:") else Said("", text)

    def for_tools(self, tools: Sequence[dict[str, JsonValue]]) -> "Renderer":
        """The renderer of trajectories with these tools; raises `TemplateError`."""
        key = json.dumps(tools)
        if not tools:
            return self
        if key not in self._with_tools:
            self._with_tools[key] = Renderer(self.tokenizer, tools)
        return self._with_tools[key]

    def render(self, trajectory: Trajectory) -> RenderedTrajectory:
        """The whole trajectory as ids."""
        own = self.for_tools(trajectory.tools)
        actions = tuple(own.action(step.action, step.thought) for step in trajectory.steps)
        first, *later = trajectory.steps
        additions = [own.opening(trajectory.instruction, first.observation)]
        for before, ids, step in zip(trajectory.steps, actions, later, strict=False):
            is_answer = bool(trajectory.tools) and call_of(before.action) is not None
            observe = own.answer if is_answer else own.observation
            additions.append((*own.past(ids), *observe(step.observation)))
        return RenderedTrajectory(trajectory, tuple(additions), own.ask, actions)
