"""Fuzz cases for parsers of text: thoughts and actions, calls, answers, replies of models."""

import json
import random
from pathlib import Path

from fuzz_inputs import CONTROL, LABELS, MARK, ODD, WORDS, Loss, call, check_found, text

from stepagent.chat.prompts import Prompt
from stepagent.rendering.actions import call_of, read_call, split_react
from stepagent.tasks.mind2web.answers import operation_words, read_answer, written_answer
from stepagent.types import Step


def parse(rng: random.Random, folder: Path) -> None:
    """Parses one text; long ones are there to find slow regular expressions."""
    rng.choice((anything, anything, replies, labelled, calls, answers))(rng)


def anything(rng: random.Random) -> None:
    """Parses any text, sometimes repeated many times."""
    said = text(rng, 12)
    if rng.random() < 0.3:
        piece = rng.choice(
            rng.choice((LABELS, CONTROL, ODD, WORDS, ("\t", " *", "\n ", "{[", '{"')))
        )
        said += piece * rng.choice((10, 1000, 20_000)) + rng.choice(("", "x", '"name"'))
    found = split_react(said)
    check_found(said, found.thought + found.action, "split_react")
    # Thinking that does not end, or with nothing after it, is not an action.
    is_thinking = "<think>" in said and not said.rpartition("</think>")[2].strip()
    is_thinking |= "<think>" in said and "</think>" not in said
    if not found.action.strip() and not is_thinking:
        raise Loss(f"split_react: no action in {said[:200]!r}")
    read_call(said)
    call_of(said)
    read_answer(said)
    for form in ("action", "react"):
        thought, action = Prompt(form).read(said)
        if "\n" in action:
            raise Loss(f"{form}: an action of several lines: {action!r}")
        # An action is one line; what a model writes after it is dropped.
        first = next((line for line in said.splitlines() if MARK.search(line)), "")
        if said.startswith(first) and first and not (thought + action).strip():
            raise Loss(f"{form}: nothing is left of {said[:200]!r}")


def replies(rng: random.Random) -> None:
    """A step that is rendered for a prompt parses as the same step."""
    step = Step(observation="", action=words(rng), thought=rng.choice(("", words(rng))))
    for form in ("action", "react"):
        prompt = Prompt(form)
        thought, action = prompt.read(prompt.answer(step).content)
        if action != step.action or (form == "react" and thought != step.thought):
            raise Loss(f"{form}: {step.thought!r}, {step.action!r} as {thought!r}, {action!r}")


def labelled(rng: random.Random) -> None:
    """Parses the usual ways in which models write a thought and an action."""
    thought, action = words(rng), words(rng)
    said = rng.choice(SPOKEN).format(thought=thought, action=action)
    found_thought, found_action = Prompt("react").read(said)
    if found_action != action or thought not in found_thought:
        raise Loss(f"react: {said!r} as {found_thought!r}, {found_action!r}")
    bare = rng.choice(("{action}", "Action: {action}", "ACTION: {action}", "Action\uff1a{action}"))
    said = rng.choice(("", "<think>{thought}</think>\n")) + bare
    said = said.format(thought=thought, action=action)
    _, found_action = Prompt("action").read(said)
    if found_action != action:
        raise Loss(f"action: {said!r} as {found_action!r}")


SPOKEN = (
    "Thought: {thought}\nAction: {action}",
    "Thought: {thought}\n\nAction: {action}\n\nObservation: made up",
    "THOUGHT: {thought}\nACTION: {action}",
    "Thought: {thought}\n  Action: {action}",
    "Thought 1: {thought}\nAction 1: {action}",
    "Thought\uff1a{thought}\nAction\uff1a{action}",
    "**Thought:** {thought}\n**Action:** {action}",
    "<think>{thought}</think>\nAction: {action}",
    "<think>\n{thought}\n</think>\n\nThought: So.\nAction: {action}",
)


def calls(rng: random.Random) -> None:
    """A call is recognized with any JSON spacing, and no other text is."""
    wanted = call(rng)
    written = json.dumps(json.loads(wanted), indent=rng.choice((None, 0, 2)))
    found = read_call(rng.choice(("{}", " {}", "\n{}\n")).format(written))
    if found is None or found.model_dump() != json.loads(wanted):
        raise Loss(f"read_call: {wanted!r} as {found}")
    if (other := read_call(f"{words(rng)} {wanted}")) is not None:
        raise Loss(f"read_call: a text before {wanted!r} is lost: {other}")
    own = call_of(wanted)
    if own is None or own.action() != wanted:
        raise Loss(f"call_of: {wanted!r} as {own}")


def answers(rng: random.Random) -> None:
    """Answers of Mind2Web are read back as they were written."""
    letter, operation = rng.choice("BCDEF"), rng.choice(("CLICK", "SELECT", "TYPE"))
    value = words(rng)
    found = read_answer(written_answer(letter, operation, value))
    if found is None or (found.letter, found.operation) != (
        letter,
        operation_words(operation, value),
    ):
        raise Loss(f"mind2web: {letter} {operation} {value!r} as {found}")


def words(rng: random.Random) -> str:
    """An ordinary line of text."""
    return text(rng, 5, hostile=False).strip()
