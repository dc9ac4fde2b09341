"""Where the three data sets come from, and how their files become the questions of the task."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from stepagent.tasks.base import Split, TaskDataError
from stepagent.tasks.data.sources import Prepared, Source
from stepagent.tasks.qa.question_store import new_store
from stepagent.tasks.qa.questions import Dataset, UnusableError, question_id, read_question
from stepagent.tasks.qa.record_files import RecordFile, record_files

FILE = "questions.sqlite"

_HOTPOT = "http://curtis.ml.cmu.edu/datasets/hotpot"
_MUSIQUE = (
    "https://huggingface.co/datasets/dgslibisey/MuSiQue/resolve/"
    "c8f4f8c9465fb69d31a8eae894c3fd509c4ca321"
)

SOURCES: dict[Dataset, tuple[Source, ...]] = {
    "hotpotqa": (
        Source(
            url=f"{_HOTPOT}/hotpot_train_v1.1.json",
            file="hotpot_train_v1.1.json",
            sha256="26650cf50234ef5fb2e664ed70bbecdfd87815e6bffc257e068efea5cf7cd316",
        ),
        Source(
            url=f"{_HOTPOT}/hotpot_dev_distractor_v1.json",
            file="hotpot_dev_distractor_v1.json",
            sha256="4e9ecb5c8d3b719f624d66b60f8d56bf227f03914f5f0753d6fa1b359d7104ea",
        ),
    ),
    # The release with answer ids and aliases, which version 1.1 of the metrics needs.
    "2wikimultihopqa": (
        Source(
            url="https://www.dropbox.com/s/ms2m13252h6xubs/data_ids_april7.zip?dl=1",
            file="data_ids_april7.zip",
        ),
    ),
    # The authors publish on Google Drive; these copies equal the files of their zip.
    "musique": (
        Source(
            url=f"{_MUSIQUE}/musique_ans_v1.0_train.jsonl",
            file="musique_ans_v1.0_train.jsonl",
            sha256="83a75b1e11e4e9bb8f8308e72ac40ca617ae4431b3a0d955b61cab259248490a",
        ),
        Source(
            url=f"{_MUSIQUE}/musique_ans_v1.0_dev.jsonl",
            file="musique_ans_v1.0_dev.jsonl",
            sha256="15fa63794d18a94ce12411aca6e2327e65b6e83b0b1490efab3f1962e48abf3b",
        ),
    ),
}

_Official = Literal["evaluation", "train"]

_OWN_FIELDS: tuple[tuple[str, Dataset], ...] = (
    ("question_decomposition", "musique"),
    ("paragraphs", "musique"),
    ("evidences", "2wikimultihopqa"),
    ("entity_ids", "2wikimultihopqa"),
    ("level", "hotpotqa"),
)
_NAMES: dict[str, Dataset] = {
    "hotpot": "hotpotqa",
    "2wiki": "2wikimultihopqa",
    "musique": "musique",
}


@dataclass(frozen=True)
class _QuestionFile:
    file: RecordFile
    official: _Official

    @property
    def rank(self) -> tuple[bool, bool, RecordFile]:
        """Sort key: evaluation questions first, files with retrieved paragraphs (fullwiki) last.

        If several files have a question, it is taken from the first.
        """
        return self.official == "train", "fullwiki" in self.file.stem, self.file


@dataclass(frozen=True)
class _Scan:
    """The files of one data set at or below a folder."""

    files: list[_QuestionFile]
    """Files with questions, best first."""
    aliases: dict[str, tuple[str, ...]]
    """Aliases of answers, by answer id."""
    used: tuple[Path, ...]
    """Files on disk that are read."""
    left_out: Counter[str]
    """Files that are not read, by the reason."""


def prepare(dataset: Dataset, source: Path, out: Path, *, skip_invalid: bool) -> Prepared:
    """Writes the questions of all files of the data set at or below `source` into `out`.

    Official training questions become train and dev, those of the official dev split become test.
    Questions that lack paragraphs, unless another file has them complete, and files that may belong
    to another data set raise `TaskDataError`; with `skip_invalid` they are counted instead.
    """
    scan = _scan(dataset, source, skip_invalid=skip_invalid)
    counts: Counter[str] = Counter(dict.fromkeys(get_args(Split), 0))
    faults: dict[str, tuple[str, str]] = {}
    whole: dict[str, _Official] = {}
    with new_store(out / FILE) as store:
        for question_file in scan.files:
            added: Counter[Split] = Counter()
            is_evaluation = question_file.official == "evaluation"
            for place, record in question_file.file.records():
                item = question_id(record) or place
                try:
                    question = read_question(dataset, record, scan.aliases)
                except UnusableError as error:
                    faults.setdefault(item, (place, str(error)))
                    continue
                split: Split = "test" if is_evaluation else _own_split(question.id)
                if store.add(question, split):
                    added[split] += 1
                    whole[question.id] = question_file.official
                    counts["with aliases"] += len(question.answers) > 1
                elif whole[question.id] != question_file.official:
                    faults[f"{place} again"] = (place, "also among the evaluation questions")
            for split, number in added.items():
                store.add_file(question_file.file.stem, split, number)
            counts.update(added)
    skipped = Counter(reason for item, (_, reason) in faults.items() if item not in whole)
    if skipped and not skip_invalid:
        _refuse(faults, whole, skipped)
    if not whole:
        _refuse_empty(dataset, source, skipped, scan)
    return Prepared(counts=dict(counts), read=scan.used, skipped=dict(skipped + scan.left_out))


def _own_split(item: str) -> Split:
    """The split of a training question: one in ten is dev, by a hash of the id."""
    return "dev" if hashlib.sha256(item.encode()).digest()[0] % 10 == 0 else "train"


def _scan(dataset: Dataset, source: Path, *, skip_invalid: bool) -> _Scan:
    """Sorts files by their first record; the folder may contain unrelated files too."""
    aliases, used, left_out = dict[str, tuple[str, ...]](), set[Path](), Counter[str]()
    by_dataset: dict[Dataset | None, list[_QuestionFile]] = {}
    for file in record_files(source):
        try:
            record = file.first()
        except TaskDataError as error:
            if _named_dataset(file, source) == dataset:
                raise
            left_out[str(error)] += 1
            continue
        if not record and _named_dataset(file, source) == dataset and _split_named(file):
            raise TaskDataError(f"{file.name}: expected a JSON object first (incomplete file?)")
        if dataset == "2wikimultihopqa" and "Q_id" in record:
            aliases.update(_read_aliases(file))
            used.add(file.path)
        if not {"question", "question_text"} & record.keys():
            continue
        owner = _dataset_of(record, file, source)
        official = _official_split(record, file)
        if official == "unsaid" and owner == dataset:
            raise TaskDataError(
                f"{file.name}: has questions; expected a file name with train or dev, rename it"
            )
        # Files of unknown origin whose questions have no paragraphs are ignored.
        if owner is not None or {"context", "contexts"} & record.keys():
            files = by_dataset.setdefault(owner, [])
            if official in ("evaluation", "train"):
                files.append(_QuestionFile(file, official))
    files = by_dataset.get(dataset, []) + _unknown_files(
        dataset, by_dataset, left_out, skip_invalid
    )
    used.update(each.file.path for each in files)
    files.sort(key=lambda each: each.rank)
    return _Scan(files, aliases, tuple(sorted(used)), left_out)


def _unknown_files(
    dataset: Dataset,
    by_dataset: dict[Dataset | None, list[_QuestionFile]],
    left_out: Counter[str],
    skip_invalid: bool,
) -> list[_QuestionFile]:
    """Files that do not show their data set, if they can only belong to this one.

    That is the case if there are no other files with questions and all are in one folder. IRCoT's
    release contains a fourth data set in the same format, beside the folders of these three.
    """
    unknown = by_dataset.get(None, [])
    folders = {each.file.name.rpartition("/")[0] for each in unknown}
    if len(folders) <= 1 and not by_dataset.keys() - {None}:
        return unknown
    for each in unknown:
        problem = f"{each.file.name}: may belong to another data set"
        if not skip_invalid:
            raise TaskDataError(
                f"{problem}; give a folder with {dataset} only, name the data set in the path "
                f"({', '.join(_NAMES)}), or skip the file with --skip-invalid"
            )
        left_out[problem] += 1
    return []


def _dataset_of(record: dict[str, Any], file: RecordFile, source: Path) -> Dataset | None:
    stated = (owner for field, owner in _OWN_FIELDS if field in record)
    return next(stated, _named_dataset(file, source))


def _named_dataset(file: RecordFile, source: Path) -> Dataset | None:
    """The data set that the path names, from the source's own name on."""
    inside = file.name.removeprefix(str(source.parent)).lower()
    return next((owner for name, owner in _NAMES.items() if name in inside), None)


def _official_split(
    record: dict[str, Any], file: RecordFile
) -> _Official | Literal["hidden", "unsaid"]:
    """The official split by the file's name; `hidden` is a test split without answers."""
    named = _split_named(file)
    if named == "test":
        is_answered = record.get("answer") or record.get("answers_objects")
        return "evaluation" if is_answered else "hidden"
    return named or "unsaid"


def _split_named(file: RecordFile) -> _Official | Literal["test"] | None:
    words = re.findall("[a-z]+", file.stem.lower())
    if any(word.startswith("train") for word in words):
        return "train"
    if any(word.startswith(("dev", "val")) for word in words):
        return "evaluation"
    return "test" if any(word.startswith("test") for word in words) else None


def _read_aliases(file: RecordFile) -> dict[str, tuple[str, ...]]:
    aliases = {}
    for place, record in file.records():
        names = [*(record.get("aliases") or ()), *(record.get("demonyms") or ())]
        if not isinstance(record.get("Q_id"), str) or not all(isinstance(n, str) for n in names):
            raise TaskDataError(f"{place}: expected Q_id, aliases and demonyms, all text")
        aliases[record["Q_id"]] = tuple(names)
    return aliases


def _refuse(
    faults: dict[str, tuple[str, str]], whole: dict[str, _Official], skipped: Counter[str]
) -> None:
    place, reason = next(fault for item, fault in faults.items() if item not in whole)
    raise TaskDataError(
        f"{place}: {reason}; {skipped.total()} questions are invalid, --skip-invalid skips them"
    )


def _refuse_empty(dataset: Dataset, source: Path, skipped: Counter[str], scan: _Scan) -> None:
    reasons: Sequence[str] = [f"{count} with {reason}" for reason, count in skipped.items()]
    wanted = " and ".join(source.file for source in SOURCES[dataset])
    left_out = "; ".join([*scan.left_out][:3])
    more = f" and {len(scan.left_out) - 3} more" if len(scan.left_out) > 3 else ""
    raise TaskDataError(
        f"{source}: no questions of {dataset} with paragraphs"
        + (f" ({', '.join(reasons)})" if reasons else "")
        + f"; expected {wanted}, or other JSON, JSON lines or parquet files (also .gz or .zip) "
        "named after their split" + (f"; left out: {left_out}{more}" if left_out else "")
    )
