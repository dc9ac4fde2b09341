"""Where Mind2Web's data comes from, and how the official files become the steps of the task.

The official data consists of JSON lists of web tasks, those of the three test parts in `test.zip`,
and the ranks of elements in `scores_all_data.pkl`. Without an official training part, single steps
of it are read from the files that `single_steps` describes.
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
from stepagent.tasks.data.json_files import parse_json, read_json, read_records
from stepagent.tasks.data.sources import Prepared, Source
from stepagent.tasks.mind2web.page import read_page
from stepagent.tasks.mind2web.ranks import Ranks, read_ranks
from stepagent.tasks.mind2web.single_steps import is_single_step, single_step
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
"""The revision with `test.zip` and `scores_all_data.pkl`."""

PASSWORD = b"mind2web"
"""Published password of `test.zip`, which keeps the test parts out of crawled training data."""

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
"""The official files, 6.7 GB together."""

_PARTS: tuple[Part, ...] = get_args(Part)
_ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
_PART_FILE = re.compile(rf"({'|'.join(_PARTS)})(_\d+)?")
_ARCHIVE = re.compile(r"test.*\.zip")
_RANKS = re.compile(r"scores.*\.pkl")

EXPECTED = (
    "expected train_*.json, test_task_*.json, test_website_*.json, test_domain_*.json (these may "
    "be in test.zip) and scores_all_data.pkl, from huggingface.co/datasets/osunlp/Mind2Web"
)


Contents: TypeAlias = Iterator[tuple[str, JsonValue]]
"""Records, each preceded by its place for messages."""


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
    """Writes the steps of all official files, or files of single steps, below `source` into `out`.

    A web task with an invalid step is invalid as a whole. Raises `TaskDataError`.
    """
    preparation = _Preparation(sorted(p for p in source.rglob("*") if not p.is_dir()), skip_invalid)
    write_steps(out, preparation.web_tasks())
    if not preparation.counts:
        raise TaskDataError(f"{source}: no steps of Mind2Web; {EXPECTED}")
    return Prepared(
        counts=dict(preparation.counts),
        read=tuple(preparation.read),
        skipped=dict(preparation.skipped),
    )


class _Preparation:
    """One pass over the files; its counts are complete when `web_tasks` is exhausted."""

    def __init__(self, files: list[Path], skip_invalid: bool) -> None:
        self.counts: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.read: list[Path] = []
        self._files = files
        self._skip_invalid = skip_invalid
        self._place_of: dict[str, str] = {}

    def web_tasks(self) -> Iterator[list[AnnotatedStep]]:
        """Yields the steps of each valid web task."""
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
            # All files together, since the steps of a web task may be spread over several.
            yield from self._single_steps(chain.from_iterable(step_files.values()))

    def _single_steps(self, contents: Contents) -> Iterator[list[AnnotatedStep]]:
        by_task: dict[str, list[AnnotatedStep]] = {}
        for place, record in contents:
            for step in self._valid(place, partial(single_step, record)):
                by_task.setdefault(step.annotation_id, []).append(step)
        yield from by_task.values()

    def _valid(self, place: str, make: Callable[[], list[AnnotatedStep]]) -> list[AnnotatedStep]:
        """The steps that `make` returns; if it raises ValueError, none, counted as skipped."""
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
            raise ValueError("actions: expected at least one, each with an entry in action_reprs")
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
        files = [path for path in self._files if _RANKS.fullmatch(path.name)]
        if not files:
            raise TaskDataError(f"the ranks of the candidates are missing; {EXPECTED}")
        self.read.append(files[0])
        return read_ranks(files[0])


def _part_of(place: str) -> Part:
    """The official part, by the file name in `place`."""
    for part in _PARTS:
        if part in place.rsplit("/", 1)[-1]:
            return part
    raise ValueError(f"expected a file name with one of {', '.join(_PARTS)}")


def _contents(path: Path) -> Contents:
    """The records of a JSON file or of an archive; none if its name is not one of Mind2Web's."""
    if _ARCHIVE.fullmatch(path.name):
        yield from _archived(path)
    elif _is_of_mind2web(path.name) and ".jsonl" in path.name:
        yield from read_records(path)
    elif _is_of_mind2web(path.name):
        yield from _listed(str(path), read_json(path))


def _is_of_mind2web(name: str) -> bool:
    """Whether a file's name is that of an official part, or contains the name of the data set."""
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
            if _is_of_mind2web(Path(name).name):
                with open_member(archive, path, name, PASSWORD) as content:
                    text = content.all()
                yield from _listed(f"{path}: {name}", parse_json(text, f"{path}: {name}"))
