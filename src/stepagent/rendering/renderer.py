"""Trajectories to token ids and back. Each id is made once, here or by sampling, and then kept.

A trajectory is a dialogue: the user turn at step t holds the observation (the first one also the
instruction), the assistant turn the action. The tokenizer's own chat template marks the turns. It
is split once into its markup (`chat_template.py`), so that a dialogue grows by appending ids and is
never rendered again:

    history 0     = opening(instruction, observation 0)
    history t + 1 = history t + past(action t) + observation(observation t + 1)
    state t       = history t + ask                  the policy's context for action t

With most templates past(a) = ask + a, and each state is a prefix of the next. Some rewrite earlier
turns: Qwen3's drops their thinking block. Then states share only their histories, and each `ask`
and action is a separate branch; the prefix tree holds both kinds alike.

Tool calls and their results are written in the template's format, or as plain text
(`tool_calls.py`) if the template would lose a part of them. Nothing is trained that the trajectory
does not say: the text of every action can be read back from its ids, or rendering fails.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache
from itertools import groupby

from pydantic import JsonValue
from transformers import PreTrainedTokenizerBase

from stepagent.console.printable import printable
from stepagent.rendering.actions import ThoughtAndAction, read_call, same_action, split_react
from stepagent.rendering.chat_template import Markup, TemplateError, dialogue_markup, split_template
from stepagent.rendering.encoding import Encoder, EncodingError
from stepagent.rendering.tool_calls import CallError, TemplateCalls, tools_as_text
from stepagent.types import Trajectory

logger = logging.getLogger(__name__)


@cache
def warn_once(message: str) -> None:
    """Logs a warning once per process, however many trajectories and policies it concerns."""
    logger.warning(message)


@dataclass(frozen=True)
class RenderedTrajectory:
    """A trajectory as token ids."""

    trajectory: Trajectory
    additions: tuple[tuple[int, ...], ...]
    """For each step the ids it adds to the history: the previous action and the observation."""
    ask: tuple[int, ...]
    """The generation prompt: follows a history and starts the agent's turn."""
    actions: tuple[tuple[int, ...], ...]
    """For each step the ids of its action, with the end-of-turn token."""
    has_text_form: bool = False
    """Whether its tools and calls are plain text rather than in the template's format."""

    @property
    def states(self) -> Iterator[list[int]]:
        """For each step the context of its action: the history and the generation prompt."""
        history: list[int] = []
        for addition in self.additions:
            history += addition
            yield [*history, *self.ask]

    @property
    def num_tokens(self) -> int:
        """Length in tokens of the longest state with its action."""
        longest = history = 0
        for addition, action in zip(self.additions, self.actions, strict=True):
            history += len(addition)
            longest = max(longest, history + len(self.ask) + len(action))
        return longest


class Renderer:
    """Writes instructions, observations and actions as token ids, and reads actions back."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, tools: Sequence[dict[str, JsonValue]] = ()
    ) -> None:
        """Splits the tokenizer's chat template; raises `TemplateError` if that is impossible.

        With `tools` (function schemas) raises `CallError` if calls that the template writes cannot
        be read back. `for_tools` falls back to plain text in that case.
        """
        self.tokenizer = tokenizer
        self._encoder = Encoder(tokenizer, dialogue_markup(tokenizer, tools))
        markup = split_template(self._encoder, tools)
        self._space = markup.space
        self._before = self._encoder.markup(markup.before)
        head, ask = self._encoder.split_head(markup.ask)
        if not markup.past.startswith(head):
            head, ask = "", markup.ask
        self._head = head
        self.ask = tuple(self._encoder.markup(ask, behind=markup.end))
        self.marks_are_text = not self._encoder.controls(list(self.ask))
        """Whether the agent's turn starts with plain text, which an observation can imitate."""
        if self.marks_are_text:
            warn_once(
                f"chat template: marks the agent's turn by plain text, '{printable(markup.ask)}'; "
                "an observation that contains it looks like a turn"
            )
        self._lead = self._encoder.markup(markup.lead, behind=markup.end)
        self._close = self._end_of_turn(markup.end)
        self.end_id = self._close[-1]
        """The token that ends an action."""
        self._next_turn = self._behind_end(markup)
        self._later_head, self._suffix = self._behind_observation(markup)
        self._past_lead = self._encoder.markup(markup.past.removeprefix(head), behind=markup.end)
        self.is_stable = markup.past == markup.ask + markup.lead
        """Whether each state is a prefix of the next one."""
        self.tools_in_prompt = ""
        """Description of the tools before the instruction, if they are written as plain text."""
        self._with_tools: dict[str, Renderer] = {}
        self._calls: TemplateCalls | None = None
        if tools:
            self._calls = TemplateCalls(self._encoder, tools, markup)
            self._read_answers(markup, self._calls, tools)

    def _end_of_turn(self, end: str) -> list[int]:
        """Ids that end an action, up to the first control token."""
        if not end:
            raise TemplateError("chat template: does not mark the end of an assistant turn")
        ids = self._encoder.markup(end)
        places = [place for place, i in enumerate(ids) if i in self._encoder.control]
        if not places:
            raise TemplateError(
                f"chat template: ends a turn with '{printable(end)}', which is not a single token "
                "of this tokenizer; expected an end-of-turn token"
            )
        return ids[: places[0] + 1]

    def _behind_end(self, markup: Markup) -> list[int]:
        # Encoded after the end token: some tokenizers add a space at the start of a text.
        end, after = (self._encoder.markup(t) for t in (markup.end, markup.end + markup.between))
        if after[: len(end)] != end:
            raise TemplateError("the tokenizer merges the end of a turn with the next turn")
        return after[len(self._close) :]

    def _behind_observation(self, markup: Markup) -> tuple[str, list[int]]:
        """Markup between a later observation and `ask`: its plain start, and ids of the rest."""
        head, rest = self._encoder.split_head(markup.suffix)
        if head or self.marks_are_text or self._encoder.controls(self._encoder.markup(rest)):
            return head, self._encoder.markup(rest + self._head, behind=markup.end)
        return markup.suffix + self._head, []

    def _read_answers(
        self, user: Markup, calls: TemplateCalls, tools: Sequence[dict[str, JsonValue]]
    ) -> None:
        """Finds the template's markup around a tool's result."""
        tool = split_template(self._encoder, tools, call=calls.example)
        if tool._replace(between=user.between, suffix="", space=user.space) != user:
            raise TemplateError(
                "chat template: marks an action after a tool's result differently from others"
            )
        self._tool_turn = self._behind_end(tool)
        self._tool_space = tool.space.user
        self._tool_head, self._tool_suffix = self._behind_observation(tool)

    def opening(self, instruction: str, observation: str) -> tuple[int, ...]:
        """Ids of the first history."""
        parts = [self.tools_in_prompt, f"{instruction}\n\n{observation}"]
        content = "\n\n".join(filter(None, parts))
        return (*self._before, *self._encoder.content(content, self._space.user, self._head))

    def observation(self, observation: str) -> tuple[int, ...]:
        """Ids of a later observation, which follow `past` of the action before."""
        content = self._encoder.content(observation, self._space.user, self._later_head)
        return (*self._next_turn, *content, *self._suffix)

    def answer(self, observation: str) -> tuple[int, ...]:
        """Ids of a tool's result, which follow `past` of the call."""
        if self._calls is None:
            return self.observation(observation)
        content = self._encoder.content(observation, self._tool_space, self._tool_head)
        return (*self._tool_turn, *content, *self._tool_suffix)

    def action(self, action: str, thought: str = "") -> tuple[int, ...]:
        """Ids of an action given as text, with the end-of-turn token.

        Raises `TemplateError` if the ids would not read back as the same text, and `CallError` if
        the chat template would lose a part of a tool call.
        """
        call = read_call(action) if self._calls or self.tools_in_prompt else None
        if self._calls and call:
            return (*self._lead, *self._calls.write(call, thought), *self._close)
        action = call.action() if call else action
        said = f"Thought: {thought}\nAction: {action}" if thought else action
        ids = self._encoder.content(said, self._space.assistant)
        if (found := self._encoder.text(ids).strip()) != said.strip():
            raise TemplateError(
                f"the tokenizer cannot encode '{printable(said)}': it becomes '{printable(found)}'"
            )
        read = self.parse(ids)
        if read.thought != thought.strip() or not same_action(read.action, action):
            raise TemplateError(
                f"the action '{printable(action)}' would be read back as '{printable(read.action)}'"
                "; expected the thought in its own field, and no `Thought:` or `Action:` label "
                "inside a text"
            )
        return (*self._lead, *ids, *self._close)

    def past(self, action: Sequence[int]) -> tuple[int, ...]:
        """Ids of an action as later histories hold it; adds an end if it was cut off."""
        closed = action if action[-1] == self.end_id else (*action, *self._close)
        if self.is_stable:
            return (*self.ask, *closed)
        lead = len(self._lead)
        content = closed[lead:] if list(closed[:lead]) == self._lead else closed
        return (*self._past_lead, *content)

    def parse(self, action: Sequence[int]) -> ThoughtAndAction:
        """Thought and action of an action's ids: splits `Thought: ... Action: ...`, reads calls."""
        ids, lead = list(action), len(self._lead)
        if ids[:lead] == self._lead:
            ids = ids[lead:]
        if ids[-len(self._close) :] == self._close:
            ids = ids[: -len(self._close)]
        if self._calls and (call := self._calls.read(ids)):
            return call
        text = self._encoder.text(ids).strip()
        said = split_react(text) if text.startswith("Thought:") else ThoughtAndAction("", text)
        if self.tools_in_prompt and (written := read_call(said.action)):
            return ThoughtAndAction(said.thought, written.action())
        return said

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids, with control tokens."""
        return self._encoder.text(list(ids), with_control=True)

    def parts(self, ids: Sequence[int]) -> Iterator[tuple[str, bool]]:
        """The text of ids in runs, each with whether it consists of control tokens."""
        for is_control, run in groupby(ids, self._encoder.control.__contains__):
            yield self.text([*run]), is_control

    def for_tools(self, tools: Sequence[dict[str, JsonValue]]) -> "Renderer":
        """The renderer for trajectories with these tools: in the template's format if possible."""
        if not tools:
            return self
        key = json.dumps(tools)
        if key not in self._with_tools:
            try:
                self._with_tools[key] = Renderer(self.tokenizer, tools)
            except (TemplateError, CallError) as error:
                self._with_tools[key] = self.in_text_form(tools, str(error))
        return self._with_tools[key]

    def in_text_form(self, tools: Sequence[dict[str, JsonValue]], reason: str = "") -> "Renderer":
        """The renderer that writes these tools and their calls as plain text; logs the reason."""
        if reason:
            warn_once(f"{reason}; tool calls are written as plain text")
        own = copy(self)
        own.tools_in_prompt = tools_as_text(tools)
        return own

    def of(self, rendered: RenderedTrajectory) -> "Renderer":
        """The renderer that rendered a trajectory and can read its actions back."""
        tools = rendered.trajectory.tools
        return self.in_text_form(tools) if rendered.has_text_form else self.for_tools(tools)

    def render(self, trajectory: Trajectory) -> RenderedTrajectory:
        """The trajectory as token ids; raises `TemplateError` if a part of it would be lost."""
        own = self.for_tools(trajectory.tools)
        try:
            return own._render(trajectory)
        except CallError as error:
            return self.in_text_form(trajectory.tools, str(error))._render(trajectory)

    def _render(self, trajectory: Trajectory) -> RenderedTrajectory:
        number = 0
        try:
            actions, additions = list[tuple[int, ...]](), list[tuple[int, ...]]()
            for number, step in enumerate(trajectory.steps):
                if number == 0:
                    additions.append(self.opening(trajectory.instruction, step.observation))
                else:
                    before = trajectory.steps[number - 1]
                    is_answer = bool(trajectory.tools) and read_call(before.action) is not None
                    observe = self.answer if is_answer else self.observation
                    additions.append((*self.past(actions[-1]), *observe(step.observation)))
                actions.append(self.action(step.action, step.thought))
        except (EncodingError, TemplateError) as error:
            place = f"{printable(trajectory.id)}: step {number + 1}"
            raise TemplateError(f"{place}: {error}") from None
        return RenderedTrajectory(
            trajectory,
            tuple(additions),
            self.ask,
            tuple(actions),
            has_text_form=bool(self.tools_in_prompt),
        )
