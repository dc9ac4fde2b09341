"""Where Mind2Web comes from, and how its official files become the steps of the task.

The official data are JSON lists of web tasks, in `test.zip` for the three test parts, and the ranks
of elements in `scores_all_data.pkl`. Without an official training part, single steps of it are
taken from step files (see `mind2web_stepfile`).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TypeAlias, get_args

from pydantic import ConfigDict, JsonValue

from stepagent.tasks.base import TaskDataError
from stepagent.tasks.data.archives import open_member, open_zip
from stepagent.tasks.data.files import Prepared, Source, parse_json, read_json, read_records
from stepagent.tasks.mind2web.page import read_page
from stepagent.tasks.mind2web.ranks import Ranks, read_ranks
from stepagent.tasks.mind2web.stepfile import is_single_step, single_step
from stepagent.tasks.mind2web.steps import (
    NUM_CANDIDATES,
    PREVIOUS_ACTIONS,
    AnnotatedStep,
    AnnotationId,
    Operation,
    Part,
    annotated_step,
    checked,
    write_steps,
)
from stepagent.types import NonEmpty, Record

HUB = "https://huggingface.co/datasets/osunlp/Mind2Web/resolve"
REVISION = "17ece8eb89862368edc0cc806acee6fca5163474"
"""The one with `test.zip` and `scores_all_data.pkl`."""

PASSWORD = b"mind2web"
"""Of `test.zip`; published with it, to keep the test parts out of crawled training data."""

SOURCES: tuple[Source, ...] = (
    *(
        Source(url=f"{HUB}/{REVISION}/data/train/train_{n}.json", file=f"train_{n}.json")
        for n in range(11)
    ),
    Source(
        url=f"{HUB}/{REVISION}/test.zip",
        file="test.zip",
        sha256="8f5fbe72afab942fe97cdf7fb397e179885d89b5c16862288e9a14bc6d41ca89",
    ),
    Source(
        url=f"{HUB}/{REVISION}/scores_all_data.pkl",
        file="scores_all_data.pkl",
        sha256="884c97cd9ae0544485d21ea39e0d46422aee0291969a7324e56df3a84466dbd7",
    ),
)
"""Together 6.7 GB."""

_PARTS: tuple[Part, ...] = get_args(Part)
_ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
_PART_FILE = re.compile(rf"({'|'.join(_PARTS)})(_\d+)?")
_ARCHIVE = re.compile(r"test.*\.zip")
_RANKS = re.compile(r"scores.*\.pkl")

LOOKED_FOR = (
    "looked for train_*.json, test_task_*.json, test_website_*.json, test_domain_*.json (these may "
    "be in test.zip) and scores_all_data.pkl, from huggingface.co/datasets/osunlp/Mind2Web"
)


Contents: TypeAlias = Iterator[tuple[str, JsonValue]]
"""Records, each with its place for messages."""


class _Official(Record):
    model_config = ConfigDict(extra="ignore")


class _OfficialOperation(_Official):
    op: Operation
    value: str = ""


class _OfficialElement(_Official):
    backend_node_id: NonEmpty


class _OfficialAction(_Official):
    action_uid: NonEmpty
    operation: _OfficialOperation
    cleaned_html: NonEmpty
    pos_candidates: list[_OfficialElement]
    neg_candidates: list[_OfficialElement]


class _OfficialTask(_Official):
    annotation_id: AnnotationId
    website: NonEmpty
    domain: NonEmpty
    confirmed_task: NonEmpty
    action_reprs: list[str]
    actions: list[_OfficialAction]


def prepare(source: Path, out: Path, *, skip_invalid: bool) -> Prepared:
    """Writes the steps of all official files, or of step files, below `source` into `out`.

    A web task with an invalid step is invalid as a whole. Raises `TaskDataError`.
    """
    preparation = _Preparation(sorted(p for p in source.rglob("*") if not p.is_dir()), skip_invalid)
    write_steps(out, preparation.web_tasks())
    if not preparation.counts:
        raise TaskDataError(f"{source}: no steps of Mind2Web: {LOOKED_FOR}")
    return Prepared(
        counts=dict(preparation.counts),
        read=tuple(preparation.read),
        skipped=dict(preparation.skipped),
    )


class _Preparation:
    """One run over the files; what it did is known when all web tasks have been taken."""

    def __init__(self, files: list[Path], skip_invalid: bool) -> None:
        self.counts: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.read: list[Path] = []
        self._files = files
        self._skip_invalid = skip_invalid
        self._place_of: dict[str, str] = {}

    def web_tasks(self) -> Iterator[list[AnnotatedStep]]:
        """The steps of each web task that is valid."""
        step_files: dict[Path, Contents] = {}
        for path in self._files:
            contents = _contents(path)
            first = next(contents, None)
            if first is None or not isinstance(first[1], dict):
                continue
            contents = chain([first], contents)
            if is_single_step(first[1]):
                step_files[path] = contents
            elif "actions" in first[1]:
                self.read.append(path)
                for place, record in contents:
                    steps = self._valid(place, partial(self._official_steps, place, record))
                    if steps:
                        yield steps
        if "train" not in self.counts:
            self.read += step_files
            # Together, since steps of one web task may be in several of them.
            yield from self._of_step_files(chain.from_iterable(step_files.values()))

    def _of_step_files(self, contents: Contents) -> Iterator[list[AnnotatedStep]]:
        by_task: dict[str, list[AnnotatedStep]] = {}
        for place, record in contents:
            for step in self._valid(place, partial(single_step, record)):
                by_task.setdefault(step.annotation_id, []).append(step)
        yield from by_task.values()

    def _valid(self, place: str, make: Callable[[], list[AnnotatedStep]]) -> list[AnnotatedStep]:
        """What `make` gives; nothing, and counted as skipped, if it raises ValueError."""
        try:
            steps = make()
            for step in steps:
                if step.item in self._place_of:
                    raise ValueError(f"{step.item} is already in {self._place_of[step.item]}")
        except ValueError as error:
            if not self._skip_invalid:
                raise TaskDataError(f"{place}: {error}") from None
            self.skipped[str(error)] += 1
            return []
        for step in steps:
            self._place_of[step.item] = place
            self.counts[step.part] += 1
        return steps

    def _official_steps(self, place: str, record: JsonValue) -> list[AnnotatedStep]:
        task = checked(record, _OfficialTask)
        if not 0 < len(task.actions) <= len(task.action_reprs):
            raise ValueError("actions: expected at least one, and each with its action_reprs")
        part = _part_of(place)
        return [self._official_step(task, n, part) for n in range(len(task.actions))]

    def _official_step(self, task: _OfficialTask, n: int, part: Part) -> AnnotatedStep:
        action = task.actions[n]
        targets = [element.backend_node_id for element in action.pos_candidates]
        others = [element.backend_node_id for element in action.neg_candidates]
        try:
            candidates = self._ranks.sorted(
                f"{task.annotation_id}_{action.action_uid}", [*dict.fromkeys([*targets, *others])]
            )
            return annotated_step(
                read_page(action.cleaned_html),
                part=part,
                annotation_id=task.annotation_id,
                step=n,
                website=task.website,
                domain=task.domain,
                is_ranked=True,
                steps_of_task=len(task.actions),
                task=task.confirmed_task,
                previous_actions=task.action_reprs[max(0, n - PREVIOUS_ACTIONS) : n],
                operation=action.operation.op,
                value=action.operation.value,
                targets=targets,
                candidates=candidates[:NUM_CANDIDATES],
            )
        except ValueError as error:
            raise ValueError(f"actions[{n}]: {error}") from None

    @cached_property
    def _ranks(self) -> Ranks:
        found = [path for path in self._files if _RANKS.fullmatch(path.name)]
        if not found:
            raise TaskDataError(f"no ranks of the candidates: {LOOKED_FOR}")
        self.read.append(found[0])
        return read_ranks(found[0])


def _part_of(place: str) -> Part:
    """The part that the name of the file in a place says."""
    for part in _PARTS:
        if part in place.rsplit("/", 1)[-1]:
            return part
    raise ValueError(f"the file's name says none of {', '.join(_PARTS)}")


def _contents(path: Path) -> Contents:
    """Everything in a JSON file, or an archive of them, that may be ours, each with its place."""
    if _ARCHIVE.fullmatch(path.name):
        yield from _archived(path)
    elif _may_be_ours(path.name) and ".jsonl" in path.name:
        yield from read_records(path)
    elif _may_be_ours(path.name):
        yield from _listed(str(path), read_json(path))


def _may_be_ours(name: str) -> bool:
    """Whether a file's name is that of a part, or has the name of the data set in it."""
    stem = next((name.removesuffix(end) for end in _ENDINGS if name.endswith(end)), None)
    return stem is not None and ("mind2web" in stem or _PART_FILE.fullmatch(stem) is not None)


def _listed(place: str, content: JsonValue) -> Contents:
    """The records of a list, or of an object with `instances`."""
    records = content.get("instances") if isinstance(content, dict) else content
    if isinstance(records, list):
        for number, record in enumerate(records, start=1):
            yield f"{place}: record {number}", record


def _archived(path: Path) -> Contents:
    with open_zip(path) as archive:
        for name in sorted(set(archive.namelist())):
            if _may_be_ours(Path(name).name):
                with open_member(archive, path, name, PASSWORD) as found:
                    text = found.all()
                yield from _listed(f"{path}: {name}", parse_json(text, f"{path}: {name}"))
