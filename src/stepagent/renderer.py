"""Messages to token ids and back. Ids are made here or sampled by the policy, once, and then kept.

A trajectory is a dialogue: the user turn at step t holds the observation (the first one the
instruction too), the assistant turn the action. The tokenizer's own chat template decides how turns
are marked. It is taken apart once into the pieces around the contents, so that a dialogue grows by
appending ids and never has to be rendered again: the ids of history t are a prefix of those of
history t+1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from transformers import PreTrainedTokenizerBase

from stepagent.types import Trajectory

_MARKS = (
    "\ue000user0\ue000",
    "\ue000assistant0\ue000",
    "\ue000user1\ue000",
    "\ue000assistant1\ue000",
)


class TemplateError(ValueError):
    """The chat template cannot be used for dialogues that grow by appending."""


@dataclass(frozen=True)
class RenderedTrajectory:
    """A trajectory as token ids: what is fed before each action, and the actions."""

    trajectory: Trajectory
    observations: tuple[tuple[int, ...], ...]
    """One for each step; ends with the marker that asks the assistant to speak."""
    actions: tuple[tuple[int, ...], ...]
    """One for each step; ends with the end-of-turn token."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole trunk."""
        return sum(map(len, self.observations)) + sum(map(len, self.actions))


class Renderer:
    """Instructions, observations and actions as token ids, by one tokenizer's chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Takes the chat template apart; raises `TemplateError` if histories are not prefixes."""
        self.tokenizer = tokenizer
        opening, between, after_action = self._pieces()
        self._opening = self._encode_markup(opening[0])
        self._ask = self._encode_markup(opening[1])
        end = self._encode_markup(after_action)
        if not end:
            raise TemplateError("chat template: nothing marks the end of an assistant turn")
        self.end_id = end[0]
        """The token that ends an action."""
        self._next_turn = [*end[1:], *self._encode_markup(between)]

    def _pieces(self) -> tuple[tuple[str, str], str, str]:
        if not self.tokenizer.chat_template:
            raise TemplateError("tokenizer: expected a chat template, found none")
        user0, assistant0, user1, assistant1 = _MARKS
        roles = ("user", "assistant", "user", "assistant")
        messages = [{"role": r, "content": m} for r, m in zip(roles, _MARKS, strict=True)]

        def text(count: int, ask: bool) -> str:
            rendered = self.tokenizer.apply_chat_template(
                messages[:count], tokenize=False, add_generation_prompt=ask
            )
            return cast(str, rendered)

        first, second, whole = text(1, True), text(3, True), text(4, False)
        if not second.startswith(first + assistant0) or not whole.startswith(second + assistant1):
            raise TemplateError(
                "chat template: rewrites earlier turns, so a history is no prefix of the next one"
            )
        before, ask = first.split(user0)
        after_first = second[len(first + assistant0) :]
        between_with_end, ask_again = after_first.split(user1)
        if ask_again != ask:
            raise TemplateError("chat template: later turns are marked differently from the first")
        last = whole[len(second + assistant1) :]
        # The end-of-turn text is what closes the last assistant turn; a line break after it may be
        # left out there.
        end = last.rstrip() if between_with_end.startswith(last.rstrip()) else ""
        return (before, ask), between_with_end[len(end) :], end

    def _encode_markup(self, text: str) -> list[int]:
        return cast(list[int], self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _encode_content(self, text: str) -> list[int]:
        # Text of tasks and models must not be able to write control tokens.
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return cast(list[int], encoded["input_ids"])

    def opening(self, instruction: str, observation: str) -> tuple[int, ...]:
        """Ids fed before the first action."""
        return (
            *self._opening,
            *self._encode_content(f"{instruction}\n\n{observation}"),
            *self._ask,
        )

    def observation(self, observation: str) -> tuple[int, ...]:
        """Ids fed before a later action; they follow the end-of-turn token of the action before."""
        return (*self._next_turn, *self._encode_content(observation), *self._ask)

    def action(self, action: str) -> tuple[int, ...]:
        """Ids of an action that was given as text, with its end-of-turn token."""
        return (*self._encode_content(action), self.end_id)

    def action_text(self, token_ids: Sequence[int]) -> str:
        """The text of an action's ids."""
        return cast(str, self.tokenizer.decode(list(token_ids), skip_special_tokens=True)).strip()

    def render(self, trajectory: Trajectory) -> RenderedTrajectory:
        """The whole trajectory as ids."""
        first, *later = trajectory.steps
        return RenderedTrajectory(
            trajectory=trajectory,
            observations=(
                self.opening(trajectory.instruction, first.observation),
                *(self.observation(step.observation) for step in later),
            ),
            actions=tuple(self.action(step.action) for step in trajectory.steps),
        )
