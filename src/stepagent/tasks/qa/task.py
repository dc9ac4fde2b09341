"""Multi-hop question answering by search: HotpotQA, 2WikiMultihopQA, MuSiQue.

An agent answers a question with the actions of ReAct (Yao et al. 2023): `search[query]` opens a
paragraph, `lookup[keyword]` shows the sentences of the open paragraph with a keyword, one at a
time, and `finish[answer]` ends the episode. Where ReAct queries Wikipedia, BM25 here searches the
paragraphs that the data set provides with the question, or those of all questions of the split.

The test split is the official dev split, since the official test answers are hidden; dev is a tenth
of the official training split. The score is 100 times the answer's F1, and success is exact match,
both by the official rules of each data set (`metrics`). The expert searches for the supporting
paragraphs in the order in which one leads to the next.
"""

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from stepagent.tasks.base import ExpertFailed, Split, TaskDataError, TextEnv
from stepagent.tasks.data.optional_packages import needs
from stepagent.tasks.data.sources import required
from stepagent.tasks.episode import EpisodeEnv, Outcome, follow
from stepagent.tasks.qa.data import FILE
from stepagent.tasks.qa.metrics import NO_ANSWER, AnswerScore, score_answer
from stepagent.tasks.qa.question_store import QuestionStore
from stepagent.tasks.qa.questions import Dataset, Hop, Paragraph, Question
from stepagent.types import Trajectory

SPLITS: tuple[Split, ...] = get_args(Split)

INSTRUCTION = (
    "Answer the question in as few words as possible. Actions: search[query] opens the paragraph "
    "that fits best, lookup[keyword] shows the next sentence of the open paragraph with the "
    "keyword, finish[answer] ends."
)
NOT_AN_ACTION = "Not an action; there are search[query], lookup[keyword] and finish[answer]."

_ACTION = re.compile(r"\s*(search|lookup|finish)\s*\[(.*)\]\s*", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class QAConfig:
    """Settings of multi-hop question answering: which data set, and what can be searched."""

    dataset: Dataset = "hotpotqa"
    """Data set: hotpotqa, 2wikimultihopqa or musique; also the name of the task."""
    paragraphs: Literal["given", "union"] = "given"
    """Paragraphs to search: given, the 10 or 20 that come with the question, or union, those of all
    questions of the split, which makes supporting paragraphs much harder to find."""
    results: int = 3
    """Number of paragraphs that a search returns: the best is opened, the others are listed by
    title."""
    step_limit: int = 7
    """Most actions an episode may have before it is truncated; 7 as in ReAct."""

    def __post_init__(self) -> None:
        """Raises ValueError for unknown names and numbers below 1."""
        for name, value, allowed in (
            ("dataset", self.dataset, get_args(Dataset)),
            ("paragraphs", self.paragraphs, ("given", "union")),
        ):
            if value not in allowed:
                raise ValueError(f"unknown {name} {value!r}; allowed: {', '.join(allowed)}")
        for name, number in (("results", self.results), ("step_limit", self.step_limit)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, not {number}")

    def make_task(self) -> "MultihopQA":
        """The task with these settings."""
        return MultihopQA(self)


class Library:
    """An index of paragraphs to search."""

    def __init__(self, paragraphs: Sequence[Paragraph]) -> None:
        """Indexes titles and texts."""
        with needs("qa"):
            from stepagent.tasks.qa.retrieval import BM25
        self._paragraphs = paragraphs
        self._index = BM25([f"{p.title} {p.text}" for p in paragraphs])
        self._places: dict[str, list[int]] = {}
        for place, paragraph in enumerate(paragraphs):
            self._places.setdefault(_title(paragraph.title), []).append(place)

    def search(self, query: str, limit: int) -> list[Paragraph]:
        """The best paragraphs: first those with exactly this title, then by BM25."""
        places = [*self._places.get(_title(query), ()), *self._index.search(query, limit)]
        return [self._paragraphs[place] for place in dict.fromkeys(places)][:limit]


class SearchEnv(EpisodeEnv):
    """One question per episode; `finish` has the answer's F1 as reward, other actions have 0."""

    def __init__(self, task: "MultihopQA", step_limit: int | None) -> None:
        """An environment of `task`; a `step_limit` of None means no limit."""
        super().__init__(task, step_limit)
        self._qa = task
        self._open: Paragraph | None = None
        self._keyword, self._num_shown = "", 0

    def begin(self, item: str) -> tuple[str, str]:
        """The instruction, which explains the actions, and the question as first observation."""
        self._question = self._qa.question(item)
        self._library = self._qa.library(item)
        self._open, self._keyword, self._num_shown = None, "", 0
        return INSTRUCTION, f"Question: {self._question.question}"

    def act(self, action: str) -> Outcome:
        """Searches, looks up or finishes; any other text costs a step."""
        parsed = _ACTION.fullmatch(action)
        if parsed is None:
            return _outcome(NOT_AN_ACTION, NO_ANSWER)
        name, text = parsed[1].lower(), parsed[2].strip()
        if name == "finish":
            score = score_answer(self._qa.config.dataset, text, self._question.answers)
            return _outcome("The episode is over.", score, answer=text)
        return _outcome(self._search(text) if name == "search" else self._look_up(text), NO_ANSWER)

    def _search(self, query: str) -> str:
        found = self._library.search(query, self._qa.config.results)
        if not found:
            return "Nothing is found."
        self._open, self._keyword, self._num_shown = found[0], "", 0
        titles = dict.fromkeys(p.title for p in found[1:] if p.title != found[0].title)
        others = f"\nAlso found: {'; '.join(titles)}" if titles else ""
        return f"{self._open.title}: {self._open.text}{others}"

    def _look_up(self, keyword: str) -> str:
        if self._open is None:
            return "No paragraph is open: search first."
        if keyword.lower() != self._keyword:
            self._keyword, self._num_shown = keyword.lower(), 0
        matches = [s for s in self._open.sentences if self._keyword in s.lower()]
        if self._num_shown == len(matches):
            return "No more results." if matches else "No results."
        self._num_shown += 1
        return f"(Result {self._num_shown} / {len(matches)}) {matches[self._num_shown - 1]}"


def _outcome(observation: str, score: AnswerScore, answer: str | None = None) -> Outcome:
    return Outcome(
        observation=observation,
        score=100 * score.f1,
        reward=score.f1,
        terminated=answer is not None,
        success=score.em == 1,
        details={**asdict(score), "answer": answer},
    )


class MultihopQA:
    """Multi-hop question answering on the data set that the config names."""

    def __init__(self, config: QAConfig, *, folder: Path | None = None) -> None:
        """Reads nothing yet; `folder` is for data outside the usual `data_folder`."""
        self.name: str = config.dataset
        self.config = config
        self._folder = folder
        self._lock = threading.Lock()
        self._kinds: dict[Split, dict[str, str]] = {}
        self._libraries: dict[Split, Library] = {}

    def items(self, split: Split) -> Sequence[str]:
        """Ids of the split, in the order of the files; raises `TaskDataError` if there are none."""
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; allowed: {', '.join(SPLITS)}")
        if not self._items()[split]:
            raise TaskDataError(f"{self.name}: the installed data has no questions for {split}")
        return list(self._items()[split])

    def group(self, item: str) -> str:
        """The question's type; for MuSiQue, its number of hops."""
        return self._items()[self._split(item)][item]

    def make_env(self) -> TextEnv:
        """A new environment with this task's step limit."""
        return SearchEnv(self, self.config.step_limit)

    def expert(self, item: str) -> Trajectory:
        """Searches for each supporting paragraph by title, then answers, without a step limit.

        If the title alone opens another paragraph, the sub-question is added to the query, or else
        the paragraph's beginning. Raises `ExpertFailed` if no query opens the paragraph.
        """
        question, library = self.question(item), self.library(item)
        searches = [f"search[{_query(question, hop, library)}]" for hop in question.hops]
        actions = iter([*searches, f"finish[{question.answers[0]}]"])
        metadata = {"kind": question.kind, "paragraphs": self.config.paragraphs}
        env = SearchEnv(self, step_limit=None)
        return follow(self, env, item, lambda _: next(actions, None), metadata)

    def metrics(self, episodes: Sequence[Trajectory]) -> dict[str, float]:
        """Means over all episodes in percent, with the names of the official scripts.

        An episode without an answer counts as 0. Metrics of supporting facts and evidence are not
        computed, since `finish` gives only an answer.
        """
        names = {"em": "em", "f1": "f1", "precision": "prec", "recall": "recall"}
        if self.config.dataset == "musique":
            names = {"em": "answer_em", "f1": "answer_f1"}
        details = [cast(Mapping[str, float], e.metadata["details"]) for e in episodes]
        return {
            official: 100 * sum(d[own] for d in details) / len(details)
            for own, official in names.items()
            if details
        }

    def facts(self) -> dict[str, Any]:
        """The evaluation protocol for reports."""
        with needs("qa"):
            from stepagent.tasks.qa.retrieval import describe
        return {
            "task": self.name,
            "paragraphs": self.config.paragraphs,
            "search": describe(),
            "results": self.config.results,
            "step_limit": self.config.step_limit,
            "questions": {split: len(items) for split, items in self._items().items()},
            "files": self._store().files(),
            "splits": "test: official dev; dev: a tenth of official train, by a hash of the id",
            "score": "100 times F1 of the answer, official rules",
            "success": "exact match of the answer, official rules",
            "expert": "searches the supporting paragraphs in order, without a step limit",
        }

    def close(self) -> None:
        """Drops the indexes of whole splits; the next use builds them again."""
        with self._lock:
            self._libraries.clear()

    def question(self, item: str) -> Question:
        """The question of an item; raises ValueError if there is none."""
        self._split(item)
        return self._store().question(item)

    def library(self, item: str) -> Library:
        """The paragraphs that can be searched for an item."""
        if self.config.paragraphs == "given":
            return Library(self.question(item).paragraphs)
        split = self._split(item)
        with self._lock:
            if split not in self._libraries:
                self._libraries[split] = Library(self._store().paragraphs(split))
            return self._libraries[split]

    def _items(self) -> dict[Split, dict[str, str]]:
        with self._lock:
            if not self._kinds:
                store = self._store()
                self._kinds = {split: store.kinds(split) for split in SPLITS}
            return self._kinds

    def _split(self, item: str) -> Split:
        for split, kinds in self._items().items():
            if item in kinds:
                return split
        raise ValueError(f"unknown item {item!r} of {self.name}")

    def _store(self) -> QuestionStore:
        return QuestionStore(
            required(self.name, FILE) if self._folder is None else self._folder / FILE
        )


def _title(text: str) -> str:
    return " ".join(text.lower().split())


def _query(question: Question, hop: Hop, library: Library) -> str:
    paragraph = question.paragraphs[hop.paragraph]
    beginning = " ".join(paragraph.text.split()[:20])
    for query in (
        paragraph.title,
        f"{paragraph.title} {hop.question or question.question}",
        f"{paragraph.title} {beginning}",
    ):
        found = library.search(query, 1)
        if found and (found[0].title, found[0].text) == (paragraph.title, paragraph.text):
            return query
    raise ExpertFailed(f"{question.id}: no query finds the paragraph {paragraph.title!r}")
