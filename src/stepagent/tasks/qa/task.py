"""Multi-hop question answering by search: HotpotQA, 2WikiMultihopQA, MuSiQue.

An agent answers a question with the actions of ReAct (Yao et al. 2023): `search[query]` opens a
paragraph, `lookup[keyword]` shows the sentences of the open paragraph with a keyword, one at a
time, and `finish[answer]` ends the episode. Where ReAct asks Wikipedia, here BM25 searches the
paragraphs that the data set gives with the question, or those of all questions of the split.

The test split is the official dev split, since the official test answers are hidden; dev is a tenth
of the official training split. Score is 100 times the answer's F1, success is exact match, both by
the official rules of each data set (`qa_metrics`). The expert searches the supporting paragraphs in
the order in which one leads to the next.
"""

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from stepagent.tasks.base import ExpertFailed, Split, TaskDataError, TextEnv
from stepagent.tasks.data.files import required
from stepagent.tasks.data.optional_packages import needs
from stepagent.tasks.episode import EpisodeEnv, Outcome, follow
from stepagent.tasks.qa.data import FILE
from stepagent.tasks.qa.metrics import NO_ANSWER, AnswerScore, score_answer
from stepagent.tasks.qa.questions import Dataset, Hop, Paragraph, Question
from stepagent.tasks.qa.store import QuestionStore
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
    """Which questions, and what can be searched."""

    dataset: Dataset = "hotpotqa"
    """The data set, which is also the name of the task."""
    paragraphs: Literal["given", "union"] = "given"
    """What is searched: the question's own paragraphs (10 or 20), or those of all questions of its
    split, which makes gold paragraphs much harder to find."""
    results: int = 3
    """How many paragraphs a search finds: the best is opened, of the others the titles are told."""
    step_limit: int = 7
    """Actions after which an episode is cut off; 7 as in ReAct."""

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be."""
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
        """The task under this protocol; raises ValueError for unknown names."""
        return MultihopQA(self)


class Library:
    """Paragraphs that can be searched."""

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
        """The best paragraphs: those with just this title, as in Wikipedia, then by BM25."""
        places = [*self._places.get(_title(query), ()), *self._index.search(query, limit)]
        return [self._paragraphs[place] for place in dict.fromkeys(places)][:limit]


class SearchEnv(EpisodeEnv):
    """One question at a time; the reward is the answer's F1, given when the episode finishes."""

    def __init__(self, task: "MultihopQA", step_limit: int | None) -> None:
        """An environment of the task."""
        super().__init__(task, step_limit)
        self._qa = task
        self._open: Paragraph | None = None
        self._keyword, self._num_shown = "", 0

    def begin(self, item: str) -> tuple[str, str]:
        """The actions are told in the instruction, the question is what is seen first."""
        self._question = self._qa.question(item)
        self._library = self._qa.library(item)
        self._open, self._keyword, self._num_shown = None, "", 0
        return INSTRUCTION, f"Question: {self._question.question}"

    def act(self, action: str) -> Outcome:
        """Searches, looks up or finishes; anything else is told to be no action."""
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
    """The benchmark; which of the three, the config says."""

    def __init__(self, config: QAConfig, *, folder: Path | None = None) -> None:
        """Reads nothing yet; `folder` is where `prepare` wrote, if not the usual place."""
        self.name: str = config.dataset
        self.config = config
        self._folder = folder
        self._lock = threading.Lock()
        self._kinds: dict[Split, dict[str, str]] = {}
        self._libraries: dict[Split, Library] = {}

    def items(self, split: Split) -> Sequence[str]:
        """Ids of the data set, in the order of its files; `TaskDataError` if there are none."""
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; allowed: {', '.join(SPLITS)}")
        if not self._items()[split]:
            raise TaskDataError(f"{self.name}: the data that is there has no questions for {split}")
        return list(self._items()[split])

    def group(self, item: str) -> str:
        """The question's type; in MuSiQue its number of hops."""
        return self._items()[self._split(item)][item]

    def make_env(self) -> TextEnv:
        """A fresh environment with this task's step limit."""
        return SearchEnv(self, self.config.step_limit)

    def expert(self, item: str) -> Trajectory:
        """Searches every supporting paragraph by its title and then answers, without a step limit.

        Where the title alone opens another paragraph, the query goes on with what is asked of the
        paragraph, then with its beginning. Raises `ExpertFailed` if no query opens it.
        """
        question, library = self.question(item), self.library(item)
        searches = [f"search[{_query(question, hop, library)}]" for hop in question.hops]
        actions = iter([*searches, f"finish[{question.answers[0]}]"])
        metadata = {"kind": question.kind, "paragraphs": self.config.paragraphs}
        env = SearchEnv(self, step_limit=None)
        return follow(self, env, item, lambda _: next(actions, None), metadata)

    def metrics(self, episodes: Sequence[Trajectory]) -> dict[str, float]:
        """Means over all episodes in percent, by the names of the official scripts.

        An episode without an answer counts as 0. Metrics of supporting facts and evidence are not
        computed: `finish` has an answer only.
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
        """The protocol for reports."""
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
        """Forgets the indexes of whole splits; the next use builds them again."""
        with self._lock:
            self._libraries.clear()

    def question(self, item: str) -> Question:
        """The question of an id; raises ValueError if there is none."""
        self._split(item)
        return self._store().question(item)

    def library(self, item: str) -> Library:
        """What can be searched for an item."""
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
