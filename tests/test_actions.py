"""Marked thoughts and actions are separated, and no real action is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepagent.rendering.actions import split_react, split_thinking

MARKS = [
    ("Thought: ", "Action: "),
    ("Thought:\n", "\n\nAction:\n"),
    ("THOUGHT: ", "ACTION: "),
    ("THOUGHT: ", " ACTION: "),
    ("  Thought: ", "\t Action: "),
    ("thought: ", "action: "),
    ("**Thought:** ", "**Action:** "),
    ("**Thought**: ", "**Action**: "),
    ("__Thought__: ", "*Action*: "),
    ("### Thought: ", "### Action: "),
    ("Thought 1: ", "Action 1: "),
    ("Thought #12: ", "Action[12]: "),
    ("**Thought 3:** ", "**Action 3:** "),
    ("Thought： ", "Action： "),
    ("Thought : ", "Action : "),
    ("Thoughts: ", "Action: "),
    ("Think: ", "Act: "),
    ("Reasoning: ", "ACTION："),
    ("", "Action: "),
    ("", "ACTION: "),
    ("", "**Action:** "),
    ("", "Action 2: "),
    ("<think>", "</think>"),
    ("<think>\n", "\n</think>\n\n"),
    ("\n<THINK> ", " </think>"),
    ("<thinking>\n", "\n</thinking>\n"),
    ("<thought>", "</thought>\n"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("", "\n</think>\n\n"),
    ("<think>", "\nAction: "),
    ("<think></think>\n\nThought: ", "Action: "),
    ("<think>", "</think>\nAction: "),
]
plain = st.text(st.sampled_from("ab:*_#<>é\n .-0[]`"), min_size=1).filter(str.strip)


@pytest.mark.parametrize(("before", "between"), MARKS)
def test_a_thought_and_an_action_are_told_apart(before: str, between: str) -> None:
    text = f"{before}The cup is on the shelf.\nI go.\n{between}go to shelf 1\n"
    assert split_react(text) == ("The cup is on the shelf.\nI go.", "go to shelf 1")


@pytest.mark.parametrize(("before", "between"), MARKS)
@given(thought=plain, action=plain)
def test_text_around_the_labels_is_kept(
    before: str, between: str, thought: str, action: str
) -> None:
    said = split_react(f"{before}{thought}\n{between}{action}")
    assert said == (thought.strip(), action.strip())


pieces = st.sampled_from(
    ["x", "x", "\n", "\n", " ", "*", "**", "Thought:", "thought 1:", "Action:", "ACTION\uff1a",
     "act:", "action:", "**Action:**", "### Action:", "<think>", "</think>", "[THINK]",
     "[/THINK]", ":"]
)  # fmt: skip


@given(st.lists(pieces, max_size=15).map("".join))
def test_splitting_loses_nothing_but_labels_and_white_space(text: str) -> None:
    thought, action = split_react(text)
    assert (thought + action).count("x") == text.count("x")
    rest = iter(text)
    assert all(char in rest for char in "".join((thought + action).split()))


@given(
    st.text().map(str.strip).filter(lambda t: "Action:" not in t),
    st.text().map(str.strip).filter(lambda t: t and "Action:" not in t),
)
def test_what_was_rendered_is_split_as_it_was(thought: str, action: str) -> None:
    assert split_react(f"Thought: {thought}\nAction: {action}") == (thought, action)


@pytest.mark.parametrize(
    "text",
    [
        "go to shelf 1",
        "I say Action: stop",
        "Thought: I go. Action: go to shelf 1",
        "click[Action: the film]",
        "Thought: I wonder.",
        "Thought: a\nAction:",
        "Thought: a\n**Action:** ",
        "name: CI\naction: push",
        "action: click\nid: 5",
        "Statement:\n    Action: s3:Get*\n    Resource: '*'",
        "    Action: s3:Get*\n    Resource: '*'",
        "Action Input: {}",
        "Actions: look, go",
        "Reaction: look",
        "Transaction: 5",
        '{"thought": "I look.",\n"action": "look"}',
        '"Action": look',
        "act: 2\nscene: 3",
        "echo '</think>'",
        "sed -i s/<think>// a.txt\n</think>",
        "write <think>a</think>",
        "think about it",
        "<thinker>a</thinker>",
        "**Action: bold",
        "",
        " \n",
    ],
)
def test_a_text_without_labels_at_the_start_of_its_lines_is_all_action(text: str) -> None:
    assert split_react(text) == ("", text)


@pytest.mark.parametrize(
    ("text", "thought", "action"),
    [
        ("ACTION: take cup 1", "", "take cup 1"),
        ("action: look", "", "look"),
        (" Action： look", "", "look"),
        ("**Thought: I look.**\n**Action: look**", "I look.", "look"),
        ("**Action: click[*]**", "", "click[*]"),
        ("Action: **bold**", "", "**bold**"),
        ("Thought: Either\nAction: wait\nor\nAction: go", "Either\nAction: wait\nor", "go"),
        ("Thought: I write.\nAction: write\n  Action: s3:*", "I write.", "write\n  Action: s3:*"),
        ("THOUGHT: I write.\nACTION: write\n  Action: s3", "I write.", "write\n  Action: s3"),
        ("THOUGHT: I write.\n ACTION: write\naction: x", "I write.\n ACTION: write", "x"),
        ("Action: search\nAction Input: kettle", "", "search\nAction Input: kettle"),
        ("<think>\n\n</think>\n\nlook", "", "look"),
        ("<think>a</think><think>b</think>look", "a\n\nb", "look"),
        ("<think>a</think>Thought: b\nAction: look", "a\n\nb", "look"),
        ("<think>I look", "I look", ""),
        ("<think>I look</think>\n", "I look", ""),
        ("<think>I look\nACTION: look", "I look", "look"),
        ("<think>a</thinking>b</think>c", "a</thinking>b", "c"),
        ("I look.</think>\nlook", "I look.", "look"),
        ("look </think>", "", "look </think>"),
    ],
)  # fmt: skip
def test_odd_texts_are_split_like_this(text: str, thought: str, action: str) -> None:
    assert split_react(text) == (thought, action)


def test_only_thoughts_in_tags_are_split_off_before_a_call() -> None:
    assert split_thinking("<think>a</think> Thought: b") == ("a", " Thought: b")
    assert split_thinking("Thought: b") == (None, "Thought: b")


@pytest.mark.parametrize(
    "text",
    [" " * 10**6 + "x", "Action" + " " * 10**6, "*" * 10**6, "#" * 10**6, "\n" * 10**6,
     "Thought: a\n" + "Action:a\n" * 110_000, "**Action: x\n" * 90_000, " Action:\n" * 110_000,
     "<think>" * 150_000, "<think></think>" * 70_000, "</think>\n" * 110_000,
     "<think>a</thought>" * 60_000, "<think>\n" + "Action: x\n" * 100_000, "<think>" + " " * 10**6],
)  # fmt: skip
def test_a_text_of_a_million_characters_is_split_quickly(text: str) -> None:
    # A quadratic pattern would take hours here.
    assert len("".join(split_react(text))) <= len(text)


def test_tags_around_the_whole_action_are_removed() -> None:
    assert split_react("<thought>I look.</thought><action>look</action>") == ("I look.", "look")
    assert split_react("<action>\ngo on\n</action>") == ("", "go on")
    for text in (
        "<action>a</action> b",
        "<action></action>",
        "<action>a</action><action>b</action>",
    ):
        assert split_react(text).action == text
