"""The multi-choice evaluation of one step of Mind2Web, as a knock-out of groups of elements.

As in the original (Deng et al. 2023; OSU-NLP-Group/Mind2Web, src/action_prediction/metric.py), the
best-ranked elements are presented in groups of five in a shuffled order, which here is fixed. Of
each group one element or none is chosen; a chosen one goes back to the end of the queue. The
evaluation ends when at most one element is left: if it was chosen, it is the prediction, with the
operation that was given for it.
"""

from hashlib import sha256

from stepagent.tasks.mind2web.answers import (
    LETTERS,
    NONE,
    Answer,
    StepResult,
    operation_f1,
    operation_words,
    written_answer,
)
from stepagent.tasks.mind2web.page import Page
from stepagent.tasks.mind2web.steps import AnnotatedStep


def answers_needed(num_candidates: int) -> int:
    """Most answers that a step can need: each takes five elements and may put one back."""
    return -(-(num_candidates - 1) // (len(LETTERS) - 1))


class Tournament:
    """The groups of one step, one at a time, and the choice so far."""

    def __init__(self, step: AnnotatedStep, *, top_k: int, page_chars: int) -> None:
        """Shows the first group of the step's `top_k` best-ranked elements."""
        self.is_over = False
        self.shown = ""
        """The text of the current group: the page around it, and its elements by letter."""
        self._step = step
        self._is_decidable = step.is_decidable(top_k)
        self._page = Page.from_json(step.page)
        self._page_chars = page_chars
        # Sorted by hash: the same shuffled order with every version of Python.
        self._waiting = sorted(
            step.considered(top_k), key=lambda element: _hash(f"{step.item} {element}")
        )
        self._chosen: tuple[str, str] | None = None
        self._group: dict[str, str] = {}
        self._next_group()

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters that an answer may have now."""
        return (NONE, *self._group)

    def take(self, answer: Answer) -> None:
        """Continues with an answer whose letter is one of `letters`."""
        if answer.letter != NONE:
            element = self._group[answer.letter]
            self._chosen = element, answer.operation
            self._waiting.append(element)
        # The original asks nothing if no answer can be right; here the first answer ends it.
        self.is_over = len(self._waiting) <= 1 or not self._is_decidable
        if not self.is_over:
            self._next_group()

    def right_answer(self) -> str:
        """The annotated answer to the current group."""
        for letter, element in self._group.items():
            if element in self._step.targets:
                return written_answer(letter, self._step.operation, self._step.value)
        return f"{NONE}."

    def prediction(self) -> tuple[str, str] | None:
        """The predicted element and operation; None before the end or without a choice."""
        # If nothing is left, the chosen element was shown again and rejected.
        return self._chosen if self.is_over and self._is_decidable and self._waiting else None

    def result(self) -> StepResult:
        """The scores of the prediction; all 0 if there is none."""
        accuracy, f1 = 0, 0.0
        if prediction := self.prediction():
            element, operation = prediction
            accuracy = int(element in self._step.targets)
            f1 = operation_f1(operation, operation_words(self._step.operation, self._step.value))
        return StepResult(
            annotation_id=self._step.annotation_id,
            step=self._step.step,
            steps_of_task=self._step.steps_of_task,
            element_accuracy=accuracy,
            operation_f1=f1,
            step_success=int(accuracy == 1 and f1 == 1),
        )

    def _next_group(self) -> None:
        group, self._waiting = self._waiting[: len(LETTERS)], self._waiting[len(LETTERS) :]
        self._group = dict(zip(LETTERS, self._page.in_order(group), strict=False))
        marks = {element: letter for letter, element in self._group.items()}
        page, choices = self._page.around(group).texts(marks)
        lines = [f"{letter}. {choices[element]}" for letter, element in self._group.items()]
        page = page[: self._page_chars]
        self.shown = "\n".join([page, "", f"{NONE}. None of the above", *lines])


def _hash(text: str) -> bytes:
    return sha256(text.encode()).digest()
