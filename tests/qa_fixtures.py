"""Small question files in the official forms, about made-up places and people."""

import gzip
import json
import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stepagent.tasks.qa.data import prepare
from stepagent.tasks.qa.questions import Dataset
from stepagent.tasks.qa.task import MultihopQA, QAConfig

Fields = dict[str, Any]

TOWNS = ("Arnby", "Bolvik", "Corra", "Dunmere", "Eskel", "Farrow", "Gild", "Hask")
SETTINGS: dict[Dataset, str] = {
    "hotpotqa": "hotpot",
    "2wikimultihopqa": "2wiki",
    "musique": "musique",
}


def passages(number: int) -> list[tuple[str, list[str]]]:
    """Two distractors, then the birthplace of a painter, then the painter; both are needed."""
    town, other = TOWNS[number % len(TOWNS)], TOWNS[(number + 1) % len(TOWNS)]
    return [
        (f"{other} Mill", [f"{other} Mill is a mill of {other}.", "It grinds rye."]),
        (f"Bridge of {town}", [f"The bridge of {town} is {number} years old."]),
        (f"{town} (town)", [f"{town} is a town by a lake.", f"It has {200 + number} people."]),
        (f"Painter {number}", [f"Painter {number} painted ships.", f"The painter knew {town}."]),
    ]


def hotpot(number: int, **changes: Any) -> Fields:
    """A HotpotQA record; the supporting facts name the second hop first."""
    context = passages(number)
    return {
        "_id": f"q{number}",
        "question": f"How many people has the town that Painter {number} knew?",
        "answer": f"{200 + number} people",
        "type": "comparison" if number % 3 == 0 else "bridge",
        "level": "hard",
        "supporting_facts": [[context[2][0], 1], [context[3][0], 1]],
        "context": [[title, sentences] for title, sentences in context],
    } | changes


def two_wiki(number: int, **changes: Any) -> Fields:
    """A 2WikiMultihopQA record with the id of its answer."""
    record = hotpot(number) | {"type": "compositional", "answer_id": f"Q{number}"}
    del record["level"]
    return record | {"evidences": [], "evidences_id": [], "entity_ids": ""} | changes


def musique(number: int, **changes: Any) -> Fields:
    """A MuSiQue record; a distractor has the title of the second hop."""
    texts = [(title, " ".join(sentences)) for title, sentences in passages(number)]
    town = TOWNS[number % len(TOWNS)]
    texts.insert(0, (f"{town} (town)", "Its old wall fell. Nobody counted the stones."))
    return {
        "id": f"2hop__{number}_{number}",
        "question": f"How many people has the town that Painter {number} knew?",
        "answer": f"{200 + number} people",
        "answer_aliases": [f"{200 + number} inhabitants"],
        "answerable": True,
        "paragraphs": [
            {"idx": n, "title": title, "paragraph_text": text, "is_supporting": n >= 3}
            for n, (title, text) in enumerate(texts)
        ],
        "question_decomposition": [
            {"id": 1, "question": f"Painter {number} >> knew", "answer": town,
             "paragraph_support_idx": 4},
            {"id": 2, "question": "How many people has #1 ?", "answer": f"{200 + number} people",
             "paragraph_support_idx": 3},
        ],
    } | changes  # fmt: skip


def ircot(number: int, **changes: Any) -> Fields:
    """The same question in the form of IRCoT."""
    return {
        "question_id": f"q{number}",
        "question_text": f"How many people has the town that Painter {number} knew?",
        "answers_objects": [{"number": "", "date": {}, "spans": [f"{200 + number} people"]}],
        "contexts": [
            {"title": title, "paragraph_text": " ".join(sentences), "is_supporting": n >= 2}
            for n, (title, sentences) in enumerate(passages(number))
        ],
    } | changes


RECORDS: dict[Dataset, Callable[..., Fields]] = {
    "hotpotqa": hotpot,
    "2wikimultihopqa": two_wiki,
    "musique": musique,
}


def write_list(path: Path, records: Sequence[Any]) -> Path:
    """A file with one JSON list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def write_lines(path: Path, records: Sequence[Any]) -> Path:
    """JSON lines; compressed if the name ends in .gz."""
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_zip(path: Path, members: dict[str, str]) -> Path:
    """A zip of texts by name."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


_FOLDER = TemporaryDirectory(prefix="stepagent-qa-")


@cache
def prepared(dataset: Dataset) -> Path:
    """A folder with 40 training and 8 evaluation questions, as `prepare` leaves it."""
    source, out = Path(_FOLDER.name) / f"{dataset}-raw", Path(_FOLDER.name) / dataset
    out.mkdir()
    record = RECORDS[dataset]
    write_list(source / "train.json", [record(n) for n in range(40)])
    write_list(source / "dev.json", [record(n) for n in range(40, 48)])
    prepare(dataset, source, out, skip_invalid=False)
    return out


def task(dataset: Dataset, **settings: Any) -> MultihopQA:
    """The task on these questions."""
    return MultihopQA(QAConfig(dataset=dataset, **settings), folder=prepared(dataset))
