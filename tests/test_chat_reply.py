"""Replies read from arbitrary JSON and arbitrary bytes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepagent.chat.prompts import Prompt
from stepagent.chat.replies import Reply, Unreadable, read_error, read_reply
from stepagent.chat.server_errors import Fault

NAMES = st.sampled_from(
    ["choices", "message", "content", "finish_reason", "usage", "prompt_tokens", "error", "code",
     "type", "text", "thinking", "reasoning_content", "reasoning", "tool_calls", "refusal",
     "detail", "metadata", "raw", "completion_tokens", "loc"]
)  # fmt: skip
TEXTS = st.sampled_from(["", "stop", "error", "text", "thinking", "429", "\ud800", "Action: go"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.text(max_size=5)
VALUES: st.SearchStrategy[Any] = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=20,
)
MESSAGES = st.dictionaries(NAMES, VALUES, max_size=5)
CHOICES = st.fixed_dictionaries(
    {"message": MESSAGES | VALUES}, optional={"finish_reason": VALUES, "error": VALUES}
)
ANSWERS = VALUES | st.fixed_dictionaries(
    {"choices": st.lists(CHOICES, max_size=2)}, optional={"usage": VALUES, "error": VALUES}
)


@given(ANSWERS)
def test_any_json_is_a_reply_an_error_or_unreadable(answer: Any) -> None:
    body = json.dumps(answer).encode()
    try:
        read = read_reply(body)
    except Unreadable:
        read = read_error(400, body)
    if isinstance(read, Reply):
        assert all(isinstance(text, str) for text in (read.text, read.thought))
        (read.text + read.thought).encode()
        for form in ("react", "action"):
            _, action = Prompt(form).read(read.text)
            assert action == action.strip()
            assert "\n" not in action
    else:
        assert isinstance(read.said, str)
        assert all(isinstance(v, bool) for v in (read.is_passing, read.is_too_long))


@given(st.binary(max_size=60))
def test_any_bytes_are_an_error_and_never_a_crash(body: bytes) -> None:
    assert isinstance(read_error(500, body), Fault)
    try:
        read_reply(body)
    except Unreadable as error:
        assert str(error)


@pytest.mark.parametrize("depth", [100, 300, 450, 900])
def test_parts_may_be_nested_as_deep_as_json_can_be(depth: int) -> None:
    content = '[{"type": "text", "text": ' * depth + '"go on"' + "}]" * depth
    body = f'{{"choices": [{{"message": {{"content": {content}}}}}]}}'.encode()
    try:
        read = read_reply(body)
    except Unreadable:
        return
    assert isinstance(read, Reply)
    assert read.text == "go on"
