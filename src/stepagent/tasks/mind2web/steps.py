"""The installed steps of Mind2Web: one index, and one file per web task.

`index.jsonl.gz` lists the steps; `pages/<annotation id>.jsonl.gz` holds the steps of one web task
with their pages, pruned to the elements that an evaluation can ask about.
"""

import gzip
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, JsonValue, StringConstraints, ValidationError

from stepagent.tasks.base import TaskDataError
from stepagent.tasks.data.json_files import read_text
from stepagent.tasks.mind2web.page import Page
from stepagent.trajectories import problem_of
from stepagent.types import NonEmpty, Record

INDEX = "index.jsonl.gz"
PAGES = "pages"

NUM_CANDIDATES = 50
"""Number of best-ranked elements kept for a step, as in the original evaluation."""

PREVIOUS_ACTIONS = 5
"""Number of previous actions shown, as in the original."""

Part = Literal["train", "test_task", "test_website", "test_domain"]
"""The official parts of the data set."""

AnnotationId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$")]
"""Id of a web task; also a file name, hence the restricted characters."""

Operation = Literal["CLICK", "TYPE", "SELECT"]

R = TypeVar("R", bound=Record)


class IndexedStep(Record):
    """A step without its page."""

    part: Part
    annotation_id: AnnotationId
    step: Annotated[int, Field(ge=0)]
    website: NonEmpty
    domain: NonEmpty
    num_candidates: Annotated[int, Field(ge=0)]
    target_rank: Annotated[int, Field(ge=0)] | None
    """Best rank of an accepted element, from 0; None if none was kept."""
    is_ranked: bool
    """Whether the candidates are ordered by a ranker; if not, all of them are used."""

    @property
    def item(self) -> str:
        """The step's id as an item of the task."""
        return f"{self.annotation_id}/{self.step}"

    def is_decidable(self, top_k: int) -> bool:
        """Whether an answer can be right: an accepted element and at least one other are used."""
        is_within = self.target_rank is not None and (
            not self.is_ranked or self.target_rank < top_k
        )
        return is_within and self.num_candidates > 1


class AnnotatedStep(IndexedStep):
    """A step with everything that an episode needs."""

    steps_of_task: Annotated[int, Field(ge=1)] | None
    """Number of steps of its web task; None if the data has only some of them."""
    task: NonEmpty
    """The user's task."""
    previous_actions: list[str]
    """The actions before, in the data set's words."""
    operation: Operation
    value: str
    targets: list[NonEmpty]
    """Elements that the annotation accepts."""
    candidates: list[NonEmpty]
    """Elements, best rank first if they are ranked."""
    page: JsonValue

    def indexed(self) -> IndexedStep:
        """The step without its page."""
        return IndexedStep(**self.model_dump(include=set(IndexedStep.model_fields)))

    def considered(self, top_k: int) -> list[str]:
        """The candidates that an evaluation with this `top_k` uses."""
        return self.candidates[:top_k] if self.is_ranked else self.candidates


def annotated_step(page: Page, **fields: object) -> AnnotatedStep:
    """A step from its fields and its whole page; raises ValueError if they are inconsistent."""
    candidates, targets = fields["candidates"], fields["targets"]
    assert isinstance(candidates, list) and isinstance(targets, list)
    missing = [element for element in candidates if element not in page.ids]
    if missing:
        raise ValueError(f"candidate {missing[0]!r} is not on the page")
    ranks = [rank for rank, element in enumerate(candidates) if element in targets]
    known = {
        "page": page.around(candidates).to_json(),
        "num_candidates": len(candidates),
        "target_rank": ranks[0] if ranks else None,
    }
    return checked(fields | known, AnnotatedStep)


def checked(record: JsonValue | dict[str, object], record_type: type[R]) -> R:
    """Validates a record; raises ValueError with one line about what is wrong."""
    try:
        return record_type.model_validate(record)
    except ValidationError as error:
        raise ValueError(problem_of(error, record_type)) from None


def write_steps(folder: Path, tasks: Iterable[list[AnnotatedStep]]) -> None:
    """Writes all steps, one list per web task, into an existing empty folder.

    Raises `TaskDataError` for a second list of the same web task.
    """
    (folder / PAGES).mkdir()
    index: list[str] = []
    for steps in tasks:
        web_task = steps[0].annotation_id
        if (path := _pages(folder, web_task)).exists():
            raise TaskDataError(f"{web_task}: its steps are in files of two parts")
        _write(path, [step.model_dump_json() for step in steps])
        index += [step.indexed().model_dump_json() for step in steps]
    _write(folder / INDEX, index)


def read_index(path: Path) -> list[IndexedStep]:
    """Reads all steps without their pages, in order; raises `TaskDataError`."""
    return list(_read(path, IndexedStep))


def read_step(folder: Path, indexed: IndexedStep) -> AnnotatedStep:
    """Reads a step with its page; raises `TaskDataError`."""
    path = _pages(folder, indexed.annotation_id)
    for step in _read(path, AnnotatedStep):
        if step.step == indexed.step:
            return step
    raise TaskDataError(f"{path}: step {indexed.step} is missing; install the data again")


def _pages(folder: Path, annotation_id: str) -> Path:
    return folder / PAGES / f"{annotation_id}.jsonl.gz"


def _write(path: Path, lines: list[str]) -> None:
    text = "".join(line + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))  # equal steps give equal bytes


def _read(path: Path, record_type: type[R]) -> Iterator[R]:
    for number, line in enumerate(read_text(path).removesuffix("\n").split("\n"), start=1):
        try:
            yield record_type.model_validate_json(line)
        except ValidationError as error:
            problem = problem_of(error, record_type)
            raise TaskDataError(f"{path}:{number}: {problem}; install the data again") from None
