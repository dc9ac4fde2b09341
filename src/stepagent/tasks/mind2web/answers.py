"""What an agent answers in Mind2Web, and the benchmark's own metrics.

An answer is `A.`, none of the elements, or a letter with an operation: `B. Action: CLICK`,
`C. Action: TYPE Value: new york`; line breaks in place of the spaces, as in the original, are read
as well. The metrics are those of the original evaluation (Deng et al. 2023; OSU-NLP-Group/Mind2Web,
src/action_prediction/metric.py):

- element accuracy: the element is one of those that the annotation accepts;
- operation F1: of the sets of words of `TYPE new york`, predicted and annotated;
- step success: element right and operation F1 of 1;
- success rate: share of tasks all of whose steps succeed.

The first three are averaged over steps (micro) and over tasks' own means (macro).
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

NONE = "A"
LETTERS = "BCDEF"
"""One for each element of a group."""

_LETTER = re.compile(rf"(?:Answer:\s*)?([{NONE}{LETTERS}])(?!\w)")
_ACTION = re.compile(r"Action:[ \t]*(CLICK|SELECT|TYPE)")
_VALUE = re.compile(r"Value:[ \t]*(.*)")


@dataclass(frozen=True)
class Answer:
    """One letter and the words of an operation, none if the answer names no operation."""

    letter: str
    operation: str


def read_answer(text: str) -> Answer | None:
    """What the agent says; None if that is no answer, as it begins with no letter from A to F."""
    letter = _LETTER.match(text.strip())
    if letter is None:
        return None
    action, value = _ACTION.search(text), _VALUE.search(text)
    words = (action[1] if action else "", value[1].strip() if value else "")
    return Answer(letter[1], " ".join(words).strip())


def written_answer(letter: str, operation: str, value: str) -> str:
    """The answer on one line."""
    _, _, shown_value = operation_words(operation, value).partition(" ")
    return f"{letter}. Action: {operation}" + (f" Value: {shown_value}" if shown_value else "")


def operation_words(operation: str, value: str) -> str:
    """`TYPE new york`; of a value only the first line counts, and none for a click."""
    first_line = value.partition("\n")[0].strip()
    return operation if operation == "CLICK" else f"{operation} {first_line}".strip()


def operation_f1(predicted: str, annotated: str) -> float:
    """F1 of the sets of words; 1 if both are empty."""
    found, wanted = set(predicted.split()), set(annotated.split())
    if not found and not wanted:
        return 1.0
    return 2 * len(found & wanted) / (len(found) + len(wanted))


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """One step's numbers, as they are kept with its episode."""

    annotation_id: str
    step: int
    steps_of_task: int | None
    """None if only some steps of the task are in the data."""
    element_accuracy: int
    operation_f1: float
    step_success: int

    @classmethod
    def from_details(cls, details: Mapping[str, Any]) -> "StepResult":
        """From an episode's details, which may hold more."""
        return cls(**{name: details[name] for name in cls.__dataclass_fields__})


MEANS = {
    "element_accuracy": "element_accuracy",
    "operation_f1": "operation_f1",
    "step_success_rate": "step_success",
}


def mind2web_metrics(results: Iterable[StepResult]) -> dict[str, float]:
    """All metrics, 0 to 1, by name; macro averages as `macro_NAME`.

    `success_rate` counts tasks all of whose steps are among the results, and is missing if there
    are none.
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
