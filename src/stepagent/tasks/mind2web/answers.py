"""Parses an agent's answers in Mind2Web, and computes the benchmark's metrics.

An answer is `A.` for none of the elements, or a letter with an operation: `B. Action: CLICK`,
`C. Action: TYPE Value: new york`; line breaks in place of the spaces, as in the original, are also
accepted. The metrics are those of the original evaluation (Deng et al. 2023;
OSU-NLP-Group/Mind2Web, src/action_prediction/metric.py):

- element accuracy: the element is one of those that the annotation accepts;
- operation F1: F1 between the sets of words predicted and annotated, such as `TYPE new york`;
- step success: the element is accepted and operation F1 is 1;
- success rate: share of web tasks in which all steps succeed.

The first three are averaged over steps (micro), and over the means of web tasks (macro).
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

NONE = "A"
LETTERS = "BCDEF"
"""Letters of the elements of a group."""

_LETTER = re.compile(rf"(?:Answer:\s*)?([{NONE}{LETTERS}])(?!\w)")
_ACTION = re.compile(r"Action:[ \t]*(CLICK|SELECT|TYPE)")
_VALUE = re.compile(r"Value:[ \t]*(.*)")


@dataclass(frozen=True)
class Answer:
    """A letter, and the words of an operation, which are empty if the answer names none."""

    letter: str
    operation: str


def read_answer(text: str) -> Answer | None:
    """Parses an answer; None if the text does not begin with a letter from A to F."""
    letter = _LETTER.match(text.strip())
    if letter is None:
        return None
    action, value = _ACTION.search(text), _VALUE.search(text)
    words = (action[1] if action else "", value[1].strip() if value else "")
    return Answer(letter[1], " ".join(words).strip())


def written_answer(letter: str, operation: str, value: str) -> str:
    """Formats an answer as one line."""
    _, _, shown_value = operation_words(operation, value).partition(" ")
    return f"{letter}. Action: {operation}" + (f" Value: {shown_value}" if shown_value else "")


def operation_words(operation: str, value: str) -> str:
    """Operation and value as words, e.g. `TYPE new york`; only a value's first line is used."""
    first_line = value.partition("\n")[0].strip()
    return operation if operation == "CLICK" else f"{operation} {first_line}".strip()


def operation_f1(predicted: str, annotated: str) -> float:
    """F1 between the sets of words; 1 if both are empty."""
    words, wanted = set(predicted.split()), set(annotated.split())
    if not words and not wanted:
        return 1.0
    return 2 * len(words & wanted) / (len(words) + len(wanted))


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """The scores of one step, as stored with its episode."""

    annotation_id: str
    step: int
    steps_of_task: int | None
    """Number of steps of the web task; None if the data has only some of them."""
    element_accuracy: int
    operation_f1: float
    step_success: int

    @classmethod
    def from_details(cls, details: Mapping[str, Any]) -> "StepResult":
        """Reads the scores from an episode's details, which may contain more."""
        return cls(**{name: details[name] for name in cls.__dataclass_fields__})


MEANS = {
    "element_accuracy": "element_accuracy",
    "operation_f1": "operation_f1",
    "step_success_rate": "step_success",
}


def mind2web_metrics(results: Iterable[StepResult]) -> dict[str, float]:
    """All metrics, from 0 to 1, by name; macro averages are named `macro_NAME`.

    `success_rate` covers only the web tasks with results for all of their steps, and is missing if
    there are none.
    """
    by_task: defaultdict[str, list[StepResult]] = defaultdict(list)
    for result in results:
        by_task[result.annotation_id].append(result)
    if not by_task:
        return {}
    tasks = list(by_task.values())
    metrics = {}
    for name, attribute in MEANS.items():
        values = [[float(getattr(result, attribute)) for result in task] for task in tasks]
        metrics[name] = fmean(value for task in values for value in task)
        metrics[f"macro_{name}"] = fmean(fmean(task) for task in values)
    complete = [t for t in tasks if len({result.step for result in t}) == t[0].steps_of_task]
    if complete:
        metrics["success_rate"] = fmean(all(r.step_success for r in task) for task in complete)
    return metrics
