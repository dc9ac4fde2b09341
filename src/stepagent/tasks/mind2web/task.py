"""Mind2Web: one step at a time on recorded pages of real websites (Deng et al. 2023).

An item is one annotated step, `<annotation id>/<step>`, with the annotated actions before it; an
agent's prediction does not affect later steps. An episode is the multi-choice evaluation of that
step: the agent chooses from groups of the page's best-ranked elements until one is left
(`Tournament`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from stepagent.tasks.base import ExpertFailed, Split, TaskDataError
from stepagent.tasks.data.sources import data_folder, required
from stepagent.tasks.episode import EpisodeEnv, Outcome, follow
from stepagent.tasks.mind2web.answers import LETTERS, StepResult, mind2web_metrics, read_answer
from stepagent.tasks.mind2web.steps import (
    INDEX,
    NUM_CANDIDATES,
    PREVIOUS_ACTIONS,
    AnnotatedStep,
    IndexedStep,
    read_index,
    read_step,
)
from stepagent.tasks.mind2web.tournament import Tournament, answers_needed
from stepagent.types import Trajectory

RECALL_AT = (5, 10, 20, 50)
FOLDS = 10
"""Number of folds of the training part's web tasks, assigned by a hash of their ids."""

OFFICIAL: dict[int, Split] = {0: "dev"}
"""Folds that are not used for training if an official part is the test split."""

HELD_OUT: dict[int, Split] = {0: "dev", 1: "test", 2: "test", 3: "dev"}
"""Folds that are not used for training if the test split comes from the training part."""

INSTRUCTION = """\
You carry out a task on a website, one action at a time. You are shown a part of the current page \
and elements of it, each with a letter. Answer with the letter of the element that the next action \
is about, the action, CLICK, TYPE or SELECT, and the value to type or select, if any, like this:
B. Action: CLICK
C. Action: TYPE Value: new york
If it is none of these elements, answer: A.

Task: {task}
Previous actions:
{previous}"""

END = "The next action is chosen."
"""The observation after the last answer, right or wrong."""


@dataclass(frozen=True, kw_only=True)
class Mind2WebConfig:
    """Settings of Mind2Web: which steps are the test split, and how a step is evaluated."""

    test: Literal["test_task", "test_website", "test_domain", "held_out"] = "test_task"
    """Test split: an official part with new tasks, new websites or new domains; or held_out, a
    fifth of the training part, for data without the official parts (comparable with no paper)."""
    top_k: int = 50
    """Number of best-ranked elements that the agent chooses from, 2 to 50; the original uses 50."""
    step_limit: int = 20
    """Most answers in an episode, unreadable ones included, before it is truncated; a step can need
    13."""
    page_chars: int = 2000
    """Characters of the page shown with each group of elements; the original shows 512 tokens."""

    def __post_init__(self) -> None:
        """Raises ValueError for numbers out of range."""
        if not 2 <= self.top_k <= NUM_CANDIDATES:
            raise ValueError(f"top_k must be 2 to {NUM_CANDIDATES}, not {self.top_k}")
        if self.page_chars < 0:
            raise ValueError(f"page_chars must be at least 0, not {self.page_chars}")
        needed = answers_needed(self.top_k)
        if self.step_limit < needed:
            raise ValueError(
                f"step_limit must be at least {needed}, the most answers that top_k {self.top_k} "
                f"can need, not {self.step_limit}"
            )

    def make_task(self) -> "Mind2Web":
        """The task with these settings."""
        return Mind2Web(self)


class Mind2WebEnv(EpisodeEnv):
    """The evaluation of one step; see `EpisodeEnv` and `Tournament`.

    The last answer has reward 1 if the step succeeds; all other rewards are 0. A text that is not
    an answer, or has a letter that is not offered, costs a step, and the group is shown again.
    """

    def __init__(self, task: "Mind2Web", step_limit: int | None) -> None:
        """An environment of `task`; a `step_limit` of None means no limit."""
        super().__init__(task, step_limit)
        self._mind2web = task

    def begin(self, item: str) -> tuple[str, str]:
        """The task with the annotated actions so far, and the first group."""
        config, self._step = self._mind2web.config, self._mind2web.annotated(item)
        self.tournament = Tournament(self._step, top_k=config.top_k, page_chars=config.page_chars)
        previous = "\n".join(self._step.previous_actions) or "None"
        instruction = INSTRUCTION.format(task=self._step.task, previous=previous)
        return instruction, self.tournament.shown

    def act(self, action: str) -> Outcome:
        """Takes the answer to the current group."""
        tournament, answer = self.tournament, read_answer(action)
        if answer is None or answer.letter not in tournament.letters:
            letters = ", ".join(tournament.letters)
            problem = f"This is no answer: it must begin with one of the letters {letters}."
            observation = f"{problem}\n\n{tournament.shown}"
        else:
            tournament.take(answer)
            observation = END if tournament.is_over else tournament.shown
        result = tournament.result()
        return Outcome(
            observation=observation,
            score=100.0 * result.step_success,
            reward=float(result.step_success),
            terminated=tournament.is_over,
            success=bool(result.step_success),
            details=asdict(result) | {"website": self._step.website, "domain": self._step.domain},
        )


class Mind2Web:
    """The Mind2Web benchmark; its expert gives the annotated answers."""

    name = "mind2web"

    def __init__(self, config: Mind2WebConfig | None = None, *, folder: Path | None = None) -> None:
        """Reads nothing yet; `folder` is for data outside the usual `data_folder`."""
        self.config = config or Mind2WebConfig()
        self._folder = folder

    def items(self, split: Split) -> Sequence[str]:
        """Ids of the split's steps; raises `TaskDataError` if their part is not installed."""
        if split not in self._splits:
            raise ValueError(f"unknown split {split!r}: allowed: {', '.join(self._splits)}")
        official = split == "test" and self.config.test != "held_out"
        part = self.config.test if official else "train"
        if all(step.part != part for step in self._index.values()):
            hint = "; to test on a fifth of the training part, use held_out" if official else ""
            raise TaskDataError(
                f"{self._data}: no steps for {split}: the part {part} is missing{hint}"
            )
        for step in self._splits[split]:
            needed = answers_needed(step.num_candidates)
            if not step.is_ranked and needed > self.config.step_limit:
                raise TaskDataError(
                    f"{step.item} has no ranks, so top_k does not apply: its "
                    f"{step.num_candidates} elements can need {needed} answers, but "
                    f"step_limit is {self.config.step_limit}"
                )
        return [step.item for step in self._splits[split]]

    def group(self, item: str) -> str:
        """The website's domain, such as Travel."""
        return self._indexed(item).domain

    def make_env(self) -> Mind2WebEnv:
        """A new environment with this task's step limit."""
        return Mind2WebEnv(self, self.config.step_limit)

    def expert(self, item: str) -> Trajectory:
        """The annotated answers, without a step limit.

        Raises `ExpertFailed` if no accepted element is among the `top_k` best-ranked.
        """
        step = self._indexed(item)
        if not step.is_decidable(self.config.top_k):
            raise ExpertFailed(
                f"{item}: no accepted element is among the {self.config.top_k} best-ranked"
            )
        env = Mind2WebEnv(self, step_limit=None)
        metadata = {"domain": step.domain, "website": step.website}
        return follow(self, env, item, lambda _: env.tournament.right_answer(), metadata)

    def metrics(self, episodes: Sequence[Trajectory]) -> dict[str, float]:
        """The metrics of the original evaluation, from 0 to 1; see `answers`."""
        details = [episode.metadata["details"] for episode in episodes]
        return mind2web_metrics(StepResult.from_details(d) for d in details if isinstance(d, dict))

    def facts(self) -> dict[str, Any]:
        """The evaluation protocol for reports, with the number of steps that cannot be solved."""
        top_k, splits = self.config.top_k, self._splits
        return {
            "task": self.name,
            "test": self.config.test,
            "protocol": f"multi-choice in groups of {len(LETTERS)}, annotated history",
            "top_k": top_k,
            "previous_actions": PREVIOUS_ACTIONS,
            "page_chars": self.config.page_chars,
            "step_limit": self.config.step_limit,
            "steps": {split: len(steps) for split, steps in splits.items()},
            "steps_without_ranks": {
                split: sum(not step.is_ranked for step in steps) for split, steps in splits.items()
            },
            "undecidable_steps": {
                split: sum(not step.is_decidable(top_k) for step in steps)
                for split, steps in splits.items()
            },
            "recall_of_ranks": _recall(splits["test"]),
            "score": "100 if the step succeeds, else 0",
            "success": "element accepted by the annotation, and operation F1 of 1",
            "expert": "the annotation; fails on undecidable steps, which score 0",
            "unreadable_answers": "asked again; the original counts them as none of the above",
            "memory": "earlier groups of the step are in view; the original asks each by itself",
        }

    def close(self) -> None:
        """Does nothing: the task holds no resources."""

    def annotated(self, item: str) -> AnnotatedStep:
        """The step with its page; raises ValueError if there is no such item."""
        return read_step(self._data, self._indexed(item))

    @property
    def _data(self) -> Path:
        return self._folder or data_folder(self.name)

    @cached_property
    def _index(self) -> dict[str, IndexedStep]:
        path = self._folder / INDEX if self._folder else required(self.name, INDEX)
        return {step.item: step for step in read_index(path)}

    @cached_property
    def _splits(self) -> dict[Split, list[IndexedStep]]:
        splits: dict[Split, list[IndexedStep]] = {"train": [], "dev": [], "test": []}
        for step in self._index.values():
            if step.part == "train":
                splits[self._split_of(step.annotation_id)].append(step)
            elif step.part == self.config.test:
                splits["test"].append(step)
        return splits

    def _split_of(self, annotation_id: str) -> Split:
        """The split of a web task of the training part, with all of its steps."""
        splits = HELD_OUT if self.config.test == "held_out" else OFFICIAL
        return splits.get(fold_of(annotation_id), "train")

    def _indexed(self, item: str) -> IndexedStep:
        step = self._index.get(item)
        if step is None:
            raise ValueError(f"unknown item {item!r}: expected <annotation id>/<step> of the data")
        return step


def fold_of(annotation_id: str) -> int:
    """The fold of a web task of the training part, from 0 to `FOLDS` - 1."""
    return int(sha256(annotation_id.encode()).hexdigest(), 16) % FOLDS


def _recall(steps: Sequence[IndexedStep]) -> dict[str, float]:
    """Share of steps with an accepted element among the k best-ranked."""
    ranks = [step.target_rank for step in steps]
    return {
        f"recall@{k}": sum(rank is not None and rank < k for rank in ranks) / len(ranks)
        for k in RECALL_AT
        if ranks
    }
