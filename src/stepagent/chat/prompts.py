"""Prompts of chat models in an episode, and parsing of their replies.

There are two formats. `action`: the model answers with the action alone. `react`: it writes
"Thought: ..." and then "Action: ..." (ReAct, Yao et al. 2023). Both can have examples: expert
trajectories as earlier messages of the chat.

Models vary the labels (`ACTION:`, `**Action 1:**`, a full-width colon, tags): parsing is lenient.
Unlike `actions.split_react`, which splits recorded text without loss, it takes one line as the
action and drops what a model makes up after it.
"""

import re
from dataclasses import dataclass
from typing import Literal

from stepagent.chat.client import Message
from stepagent.tasks.base import NOTHING
from stepagent.types import Step, Trajectory

PromptFormat = Literal["action", "react"]

RULES: dict[PromptFormat, str] = {
    "action": (
        "You act in a text environment to complete a task. After each observation, answer with "
        "your next action alone: one line, no explanation."
    ),
    "react": (
        "You act in a text environment to complete a task. After each observation, first think "
        "about what to do, then give your next action, in exactly this form:\n"
        "Thought: what you think\n"
        "Action: one action, on one line\n"
        "Then stop and wait for the next observation."
    ),
}


@dataclass(frozen=True)
class Prompt:
    """The rules, the examples and the format of replies."""

    format: PromptFormat
    guide: str = ""
    """What the model should know about the environment, such as a list of the actions."""
    examples: tuple[Trajectory, ...] = ()

    def opening(self, instruction: str, observation: str) -> list[Message]:
        """The messages before the first reply: the rules, the examples, the first observation."""
        messages = [Message("system", "\n\n".join(filter(None, [RULES[self.format], self.guide])))]
        before = ""
        for example in self.examples:
            seen = before + _first(example.instruction, example.steps[0].observation)
            for step, after in zip(example.steps, [*example.steps[1:], None], strict=True):
                messages += [Message("user", seen), self.answer(step)]
                seen = seen_text(after.observation if after else example.final_observation)
            # Put into the next user message, since the roles must alternate.
            before = f"{seen}\n\nThat task is over.\n\n"
        return [*messages, Message("user", before + _first(instruction, observation))]

    def answer(self, step: Step) -> Message:
        """The reply that a step of an example is shown as."""
        if self.format == "action":
            return Message("assistant", step.action)
        thought = f"Thought: {step.thought}\n" if step.thought else ""
        return Message("assistant", f"{thought}Action: {step.action}")

    def read(self, text: str) -> tuple[str, str]:
        """Thought and action of a reply; the action is empty if there is none.

        Of several actions the last one is taken, since thoughts may quote actions; everything after
        a made-up observation is ignored.
        """
        reasoning, said = _without_reasoning("\n".join(text.splitlines()))
        said = _FENCE.sub("", said).strip() or said.strip()
        label = _ACTION.match(said)
        is_labelled = _ACTION.search(said) or _TAGGED.search(said) or _THOUGHT.match(said)
        if self.format == "action" and (label or not is_labelled):
            thought, action = "", _after(label) if label else said
        else:
            thought, action = _thought_and_action(said)
        return "\n".join(filter(None, [reasoning, thought])), _first_line(action)


def _label(word: str) -> re.Pattern[str]:
    """Pattern of a label at the start of a line: `Action:`, ` ACTION:`, `**Action 1**:`."""
    # Every repetition is bounded, or a hostile reply could make matching take for ever.
    name = rf"{word}[^\S\n]{{0,4}}(?:[#(]?\d{{1,4}}\)?)?"
    mark = rf"(?:\[{name}\]|{name})[^\S\n]{{0,4}}[*_`]{{0,3}}[^\S\n]{{0,4}}[:\uff1a\ufe55]"
    before = r"^[^\S\n]{0,200}(?:\d{1,3}[.)][^\S\n]{1,4})?[>#*_`\ufeff \t-]{0,20}"
    after = rf"(?:\*+|_+(?=\s))?(?:\s{{0,4}}<{word}>)?"
    return re.compile(rf"{before}(?:{mark}{after}|<{word}>)", re.MULTILINE | re.IGNORECASE)


_ACTION = _label("action")
_THOUGHT = _label("thought")
_OBSERVATION = _label("observation")

_TAGGED = re.compile(r"<action>(?=[^<]*</action>)", re.IGNORECASE)
"""The opening tag of an action, anywhere in the text."""

_INLINE = re.compile(r"\b(?:Action|ACTION)[ \t]{0,4}\d{0,4}\*{0,2}[:\uff1a]")
"""A label within a line; in lower case it would match in the middle of a thought."""

_FENCE = re.compile(r"^[ \t]*(?:```|~~~)\w*[ \t]*$", re.MULTILINE)
"""The start or end of a code block, with its language."""

_REASONING = re.compile(r"<(/?)(?:think|thinking|thought|reasoning)>", re.IGNORECASE)


def _without_reasoning(text: str) -> tuple[str, str]:
    """Splits off the reasoning that a model writes between tags; returns it and the rest.

    The opening tag may be missing, since some chat templates write it, and so may the closing one
    if the reply was cut off.
    """
    reasoning: list[str] = []
    said: list[str] = []
    start, is_inside = 0, False
    for number, tag in enumerate(_REASONING.finditer(text)):
        part, is_closing = text[start : tag.start()], bool(tag[1])
        (reasoning if is_inside or (is_closing and number == 0) else said).append(part)
        start, is_inside = tag.end(), not is_closing
    (reasoning if is_inside else said).append(text[start:])
    return "\n".join(filter(None, (part.strip() for part in reasoning))), "".join(said)


def _after(label: re.Match[str]) -> str:
    """The text after a label; for a tag, up to its closing tag."""
    text = label.string[label.end() :]
    is_tag = label[0].endswith(">")
    return re.split("</action>", text, maxsplit=1, flags=re.IGNORECASE)[0] if is_tag else text


def _thought_and_action(said: str) -> tuple[str, str]:
    first = _ACTION.search(said)
    # Weak models continue with a made-up observation.
    if first and (seen := _OBSERVATION.search(said, first.end())):
        said = said[: seen.start()].strip()
    if labels := list(_ACTION.finditer(said)) or list(_TAGGED.finditer(said)):
        thought, action = said[: labels[-1].start()], _after(labels[-1])
    elif "\n" not in said and not _THOUGHT.match(said):
        thought, action = "", said  # an action may contain a label: "C. Action: CLICK"
    elif inline := list(_INLINE.finditer(said)):
        thought, action = said[: inline[-1].start()], said[inline[-1].end() :]
    else:
        thought, action = said, ""
    thought = thought.strip(" \t\n*")
    if label := _THOUGHT.match(thought):
        thought = thought[label.end() :]
    return thought.strip(" \t\n*"), action


def seen_text(observation: str) -> str:
    """An observation as a prompt shows it; a placeholder if it is blank."""
    return observation if observation.strip() else NOTHING


def _first(instruction: str, observation: str) -> str:
    return f"Your task: {instruction}\n\n{seen_text(observation)}"


def _first_line(text: str) -> str:
    """The first line that is not blank, without surrounding Markdown."""
    lines = (line.strip(" \t`*") for line in text.splitlines())
    return next((line for line in lines if line), "")
