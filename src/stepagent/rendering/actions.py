"""Splits an agent's text into thought and action, and reads tool calls."""

import json
import re
from typing import NamedTuple

from pydantic import JsonValue, ValidationError

from stepagent.types import Record


class ThoughtAndAction(NamedTuple):
    """One turn of an agent."""

    thought: str
    """Empty if there is none."""
    action: str


class Call(Record):
    """A tool call; a step stores it as an action of compact JSON."""

    name: str
    arguments: dict[str, JsonValue]

    def action(self) -> str:
        """The call as an action: compact JSON."""
        return json.dumps(self.model_dump(), ensure_ascii=False, separators=(",", ":"))

    def is_same(self, other: "Call") -> bool:
        """Whether both have the same name and arguments; `true` differs from 1."""
        mine, theirs = (json.dumps(call.model_dump(), sort_keys=True) for call in (self, other))
        return mine == theirs


def call_of(action: str) -> Call | None:
    """The call of an action in exactly the form that `Call.action` writes; otherwise None."""
    if not action.startswith('{"name":'):
        return None
    try:
        call = Call.model_validate_json(action)
    except ValidationError:
        return None
    return call if call.action() == action else None


def same_action(action: str, other: str) -> bool:
    """Whether two actions are equal, as texts up to white space around them or as tool calls.

    Equal calls may differ as texts: a model writes the arguments in the order, and with the
    spacing, that its chat template has taught it.
    """
    if action.strip() == other.strip():
        return True
    call, another = read_call(action), read_call(other)
    return call is not None and another is not None and call.is_same(another)


def read_call(text: str) -> Call | None:
    """The call of a text, however its JSON is formatted; None for any other text."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(text)
        arguments = found.get("arguments", found.get("parameters"))
        return Call.model_validate({"name": found.get("name"), "arguments": arguments})
    except (ValueError, RecursionError):
        return None


def split_react(text: str) -> ThoughtAndAction:
    r"""Splits `Thought: ...\nAction: ...` or `<think>...</think> ...` into thought and action.

    A text with neither is all action. A label begins a line; it may be in any case, indented,
    emphasised (`**Action:**`) or numbered (`Action 1:`). Tags around the whole action
    (`<action>...</action>`) count as a label too. A line that might belong to the action itself,
    such as `action: push` in YAML, is a label only after a labelled thought. The action is empty if
    the text is only a thought in tags.
    """
    thinking, rest = split_thinking(text)
    turn = _tagged_action(rest) or _split_labels(rest)
    if thinking is None:
        return turn or ThoughtAndAction("", text)
    turn = turn or ThoughtAndAction("", rest.strip())
    return ThoughtAndAction("\n\n".join(filter(None, [thinking, turn.thought])), turn.action)


def _tagged_action(text: str) -> ThoughtAndAction | None:
    """The action of `<action>...</action>`, if that is the whole text."""
    opening, closing = "<action>", "</action>"
    text = text.strip()
    inside = text[len(opening) : -len(closing)].strip()
    is_tagged = text[: len(opening)].lower() == opening and text[-len(closing) :].lower() == closing
    return (
        ThoughtAndAction("", inside)
        if is_tagged and inside and closing not in inside.lower()
        else None
    )


def split_thinking(text: str) -> tuple[str | None, str]:
    """The thoughts in `<think>` tags at the start of a text (None without tags), and the rest."""
    thoughts: list[str] = []
    end = 0
    while opened := _OPENED.match(text, end):
        closing = rf"</{opened['word']}>" if opened["word"] else r"\[/THINK\]"
        closed = re.compile(closing, re.IGNORECASE).search(text, opened.end())
        # A thought that is never closed ends at the label of the action, or with the text.
        label = None if closed else _action_label(text, opened.end(), after_thought=True)
        border = closed or label
        thoughts.append(text[opened.end() : border.start() if border else len(text)].strip())
        end = closed.end() if closed else label.start() if label else len(text)
    # Many chat templates write the opening tag, so that a recorded reply has the closing one only.
    closed = None if thoughts or _OPENED_LATER.search(text) else _CLOSED_ALONE.search(text)
    if closed and text[closed.end() :].strip():
        thoughts, end = [text[: closed.start()].strip()], closed.end()
    return "\n\n".join(filter(None, thoughts)) if thoughts else None, text[end:]


def without_label(thought: str) -> str:
    """A thought without its label, if it has one."""
    thought = thought.strip()
    label = _THOUGHT.match(thought)
    return _content(thought, label, len(thought)) if label else thought


def _split_labels(text: str) -> ThoughtAndAction | None:
    """The labelled thought and action of a text; None if no action is labelled."""
    # The indentation of the first line stays: with it, `Action:` may be a line of YAML.
    text = text[text.rfind("\n", 0, len(text) - len(text.lstrip())) + 1 :].rstrip()
    first = _THOUGHT.match(text)
    label = _action_label(text, first.end() if first else 0, after_thought=first is not None)
    if label is None:
        return None
    return ThoughtAndAction(without_label(text[: label.start()]), _content(text, label, len(text)))


def _action_label(text: str, start: int, *, after_thought: bool) -> re.Match[str] | None:
    """The label of the action; None if there is none, or nothing after it."""
    labels = [
        label
        for label in _ACTION.finditer(text, start)
        if (after_thought or _is_plain(text, label))
        # Emphasis that includes the action must end with the text.
        and (not label["open"] or text.rstrip().endswith(label["mark"]))
    ]
    if not labels:
        return None
    # The last label counts, since thoughts quote actions; but a line inside the action must not
    # win over the label in its usual form.
    best = max(
        labels,
        key=lambda label: (
            label[0] == "Action:",
            -len(label["indent"]),
            label["word"][0].isupper(),
            label.start(),
        ),
    )
    return best if _content(text, best, len(text)) else None


def _is_plain(text: str, label: re.Match[str]) -> bool:
    """Whether this counts as a label even without a labelled thought before it."""
    if label["word"].lower() != "action":
        return False
    if label.start() == 0 and "\n" not in _content(text, label, len(text)):
        return True
    written_large = label["word"][0].isupper() or label["mark"] or label["number"]
    return not label["indent"] and bool(written_large)


def _content(text: str, label: re.Match[str], end: int) -> str:
    """The text after a label, without emphasis that began before the label."""
    content = text[label.end() : end].strip()
    return content.removesuffix(label["mark"]).strip() if label["open"] else content


def _label(words: str) -> str:
    """The pattern of a label; all repetitions are bounded, so that matching takes linear time."""
    return (
        r"(?P<indent>[^\S\n]*)(?:\#{1,6}[^\S\n]{0,2})?"
        rf"(?P<mark>[*_]{{1,3}}|)(?P<word>(?i:{words}))"
        r"(?P<number>[^\S\n]{0,2}[#(\[]?\d{1,4}[)\]]?|)[^\S\n]{0,2}"
        r"(?:(?P=mark)[^\S\n]{0,2}[:\uff1a]|[:\uff1a](?P=mark)|(?P<open>[:\uff1a]))"
    )


_THOUGHT = re.compile(_label("thoughts?|think(?:ing)?|reasoning"))
_ACTION = re.compile("^" + _label("action|act"), re.MULTILINE)
_TAGS = "(?i:think|thinking|thought|reasoning)"
_OPENED = re.compile(rf"\s*(?:<(?P<word>{_TAGS})>|\[THINK\])")
_OPENED_LATER = re.compile(rf"<{_TAGS}>|\[THINK\]")
_CLOSED_ALONE = re.compile(r"(?i:</(?:think|thinking)>)[^\S\n]*(?:\n|\Z)")
