"""Prompts of chat models, and parsing of their replies."""

import time

import pytest

from fakes import demonstrations
from stepagent.chat.prompts import RULES, Prompt
from stepagent.tasks.base import NOTHING
from stepagent.types import Step, Trajectory

REACT, ACTION = Prompt("react"), Prompt("action")


@pytest.mark.parametrize(
    ("text", "thought", "action"),
    [
        ("Thought: I see it.\nAction: open red box", "I see it.", "open red box"),
        ("Thought: I see it. Action: open red box", "I see it.", "open red box"),
        ("Thought: An Action: is next.\nAction: go on\n", "An Action: is next.", "go on"),
        ("Thought: One.\nTwo.\nAction: go on\nand more", "One.\nTwo.", "go on"),
        ("**Thought:** One.\n**Action:** `go on`", "One.", "go on"),
        ("Action: go on", "", "go on"),
        ("go on", "", "go on"),
        ("Thought: One.\nAction: C. Action: CLICK", "One.", "C. Action: CLICK"),
        ("C. Action: CLICK", "", "C. Action: CLICK"),
        ("Thought: A.\nAction: go on\nObservation: B.\nThought: C.\nAction: look", "A.", "go on"),
        ("<think>Hm.\nAction: x</think>Thought: A.\nAction: go on", "Hm.\nAction: x\nA.", "go on"),
        ("Thought: what now", "what now", ""),
        ("I see.\nI think.", "I see.\nI think.", ""),
        ("Thought: what now\nAction:", "what now", ""),
        ("Thought: what now\nAction:\n  \n", "what now", ""),
        ("", "", ""),
        (" \n\t", "", ""),
    ],
)
def test_react_reads_the_thought_and_the_last_action(text: str, thought: str, action: str) -> None:
    assert REACT.read(text) == (thought, action)


@pytest.mark.parametrize(
    "text",
    [
        "THOUGHT: Hm.\nACTION: go on",
        "thought: Hm.\naction: go on",
        "Thought 1: Hm.\nAction 1: go on",
        "Thought #2: Hm.\nAction #2: go on",
        "**Thought 1:** Hm.\n**Action 1:** go on",
        "**Thought**: Hm.\n**Action**: `go on`",
        "Thought\uff1aHm.\nAction\uff1ago on",
        "Thought \uff1a Hm.\nACTION 1 \uff1a go on",
        "  Thought: Hm.\n   Action: go on",
        "\tThought: Hm.\n\u3000Action: go on",
        "- Thought: Hm.\n- **Action:** go on",
        "1. Thought: Hm.\n2. Action: go on",
        "> Thought: Hm.\n> Action: go on",
        "[Thought]: Hm.\n[Action]: go on",
        "```\nThought: Hm.\nAction: go on\n```",
        "Thought: Hm.\n```text\nAction: go on\n```",
        "Thought: Hm.\nAction:\n```bash\ngo on\n```",
        "Thought: Hm.\r\nAction: go on\r\n",
        "Thought: Hm. ACTION: go on",
        "Thought: Hm.\nAction: <action>go on</action>",
        "Thought: Hm.\nAction:\n<action>\ngo on\n</action>\nDone.",
        "<think>Hm.</think><action>go on</action>",
        "<THINK>Hm.</THINK>\n<Action>go on</Action>",
        "<thought>Hm.</thought>\nAction: go on",
        "<thinking>Hm.</thinking>\n\nACTION: go on",
        "Action: go on\n<think>Hm.</think>",
        "Hm. <action>go on</action>",
        "Hm.</think>\naction: go on",
    ],
)
@pytest.mark.parametrize("prompt", [REACT, ACTION])
def test_labels_and_tags_are_read_in_all_variants(prompt: Prompt, text: str) -> None:
    assert prompt.read(text) == ("Hm.", "go on")


@pytest.mark.parametrize("prompt", [REACT, ACTION])
def test_reasoning_that_was_cut_off_contains_no_action(prompt: Prompt) -> None:
    assert prompt.read("<think>Perhaps\nAction: go") == ("Perhaps\nAction: go", "")


def test_the_last_action_counts_but_none_after_a_made_up_observation() -> None:
    assert REACT.read("Action 1: go on\nAction 2: look") == ("Action 1: go on", "look")
    assert REACT.read("ACTION: go on\n**Observation 1:** Red.\nACTION: look") == ("", "go on")
    seen = "Observation: Red.\nThought: Hm.\nAction: go on"
    assert REACT.read(seen) == ("Observation: Red.\nThought: Hm.", "go on")


@pytest.mark.parametrize(
    "text",
    [
        "Thought: the next action: to go, or not",
        "Thought: what\n- Reaction: none",
        "Hm.\nTransaction: x",
    ],
)
def test_a_word_that_only_looks_like_a_label_is_not_one(text: str) -> None:
    assert REACT.read(text)[1] == ""


@pytest.mark.parametrize(
    "piece",
    ["<think>", "</think>", "<action>", "Action: x\n", "Action", "Action 1", "> ", "```\n", "* ",
     "\nObservation:", "1. ", " ", "\n", "\u2028", "[action", "Thought: "],
)  # fmt: skip
def test_every_reply_is_parsed_quickly(piece: str) -> None:
    began = time.process_time()
    for prompt in (REACT, ACTION):
        prompt.read(piece * (500_000 // len(piece)) + "a")
    assert time.process_time() - began < 10  # quadratic time would take minutes


@pytest.mark.parametrize(
    ("text", "thought", "action"),
    [
        ("go on", "", "go on"),
        ("I go.\nAction: go on", "I go.", "go on"),
        ("Action: go on\nAction: look", "", "go on"),
        ("Action:\ngo on", "", "go on"),
        ("\n  open red box\nbecause it is there", "", "open red box"),
        ("Action: go on", "", "go on"),
        ("<think>Hm.</think>\n\ngo on", "Hm.", "go on"),
        ("```\ngo on\n```", "", "go on"),
        ("", "", ""),
    ],
)
def test_the_action_format_reads_the_first_line(text: str, thought: str, action: str) -> None:
    assert ACTION.read(text) == (thought, action)


@pytest.mark.parametrize("prompt", [REACT, ACTION])
@pytest.mark.parametrize("thought", ["", "It is red."])
def test_the_reply_of_a_step_reads_as_the_step(prompt: Prompt, thought: str) -> None:
    step = Step(observation="Red.", action="open red box", thought=thought)
    reply = prompt.answer(step)
    assert reply.role == "assistant"
    said = thought if prompt is REACT else ""
    assert prompt.read(reply.content) == (said, "open red box")


def test_a_prompt_without_examples_has_the_rules_and_the_guide() -> None:
    told = [(m.role, m.content) for m in REACT.opening("Do it.", "Red.")]
    assert told == [("system", RULES["react"]), ("user", "Your task: Do it.\n\nRed.")]
    guided = Prompt("action", guide="You can go on.").opening("Do it.", "Red.")
    assert guided[0].content == f"{RULES['action']}\n\nYou can go on."


def test_examples_are_earlier_messages_and_the_roles_alternate() -> None:
    examples = demonstrations()[:2]
    told = Prompt("react", examples=examples).opening("Do it.", "Red.")
    assert [m.role for m in told[1:]] == [*["user", "assistant"] * (len(told) // 2 - 1), "user"]
    actions = [m.content for m in told if m.content.startswith("Action: ")]
    assert actions == [f"Action: {s.action}" for t in examples for s in t.steps]
    begun = [m.content for m in told if "Your task: " in m.content]
    assert begun[0].startswith(f"Your task: {examples[0].instruction}\n\nThe ")
    assert begun[1].startswith(f"{examples[0].final_observation}\n\nThat task is over.\n\nYour")
    ended = f"{examples[1].final_observation}\n\nThat task is over."
    assert told[-1].content == f"{ended}\n\nYour task: Do it.\n\nRed."
    seen = {m.content for m in told if m.role == "user"}
    assert all(s.observation in seen for t in examples for s in t.steps[1:])


def test_no_message_is_empty() -> None:
    blank = Trajectory(
        id="a", task="t", instruction="Do it.", steps=(Step(observation=" ", action="go"),) * 2
    )
    told = Prompt("action", examples=(blank,)).opening("Do it.", "")
    assert all(m.content.strip() for m in told)
    assert told[-1].content.startswith(f"{NOTHING}\n\n")
    assert told[-1].content.endswith(f"\n\n{NOTHING}")
