"""Reads KnowAgent's training data (zjunlp/KnowAgent): `{"input", "output"}`, each a single text.

The input, a prompt with action knowledge and examples, becomes the instruction. The output holds
the steps: for HotpotQA as labelled lines (`ActionPath 1:`, `Thought 1:`, `Action 1:`,
`Observation 1:`), for ALFWorld as lines that begin with `> ` and the game's answers between them.
Action path and thought become the step's thought, unchanged. There is no export.
"""

import re

from pydantic import JsonValue

from stepagent.formats.records import FormatError, Notes, checked, checked_trajectory
from stepagent.types import Record, Trajectory

_HOTPOT = re.compile(r"^(ActionPath|Thought|Action|Observation) \d+:[ ]?", re.MULTILINE)
_ALFWORLD = re.compile(r"^> ?(Think:|ActionPath:|)", re.MULTILINE)


class KnowAgentRecord(Record):
    """One entry of a file."""

    input: str
    output: str


def read_knowagent(
    record: dict[str, JsonValue], name: str, task: str, notes: Notes | None = None
) -> Trajectory:
    """Reads a record; `name` becomes its id and `task` its task."""
    texts = checked(record, KnowAgentRecord)
    parts = _hotpot(texts.output) if _HOTPOT.match(texts.output) else _alfworld(texts.output)
    steps: list[dict[str, str]] = []
    thoughts: list[str] = []
    observation = ""
    for kind, text in parts:
        if kind == "thought":
            thoughts.append(text)
        elif kind == "action":
            steps.append(
                {"observation": observation, "thought": "\n".join(thoughts), "action": text}
            )
            thoughts, observation = [], ""
        else:
            observation = "\n".join(filter(None, [observation, text]))
    if not steps:
        raise FormatError("output: no action; expected lines `Action 1: ...` or `> ...`")
    if thoughts:
        raise FormatError("output: ends with a thought; expected an action or an observation")
    return checked_trajectory(
        id=name,
        task=task,
        instruction=texts.input.strip(),
        steps=tuple(steps),
        final_observation=observation,
    )


def _hotpot(output: str) -> list[tuple[str, str]]:
    """Kind and text of each labelled part; the text of a thought includes its label."""
    labels = list(_HOTPOT.finditer(output))
    ends = [label.start() for label in labels[1:]] + [len(output)]
    kinds = {"Action": "action", "Observation": "observation"}
    return [
        (kind, output[label.end() if kind != "thought" else label.start() : end].strip())
        for label, end in zip(labels, ends, strict=True)
        for kind in [kinds.get(label[1], "thought")]
    ]


def _alfworld(output: str) -> list[tuple[str, str]]:
    """Kind and text of each line."""
    parts = []
    for line in output.splitlines():
        label = _ALFWORLD.match(line)
        kind = "observation" if not label else "thought" if label[1] else "action"
        parts.append((kind, line.removeprefix(">").strip()))
    return parts
