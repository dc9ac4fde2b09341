"""Fuzz cases for the readers of the tasks' data: files, pages and prompts."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

from fuzz_inputs import damaged, mark, mutated, text

from stepagent.tasks.base import TaskDataError
from stepagent.tasks.data.json_files import read_json, read_records
from stepagent.tasks.mind2web.page import read_page
from stepagent.tasks.mind2web.single_steps import single_step
from stepagent.tasks.qa.record_files import record_files


def data(rng: random.Random, folder: Path) -> None:
    """Reads one random file, page or prompt."""
    rng.choice((files, page, prompt))(rng, folder)


def files(rng: random.Random, folder: Path) -> None:
    """Reads a JSON file, intact or damaged, plain or compressed."""
    records = [{mark(rng): text(rng)} for _ in range(rng.randint(1, 3))]
    whole = rng.choice((json.dumps(records), "\n".join(map(json.dumps, records)))).encode()
    whole = damaged(rng, whole)
    name = rng.choice(("a.json", "a.jsonl", "a.json.gz"))
    if name.endswith(".gz"):
        whole = gzip.compress(whole, 1)
        whole = damaged(rng, whole) if rng.random() < 0.3 else whole
    path = folder / name
    path.write_bytes(whole)
    try:
        match rng.randrange(3):
            case 0:
                read_json(path)
            case 1:
                list(read_records(path))
            case _:
                for file in record_files(path):
                    list(file.records())
    finally:
        path.unlink()


def page(rng: random.Random, folder: Path) -> None:
    """Reads the XML of a page, often truncated or damaged."""
    depth = rng.choice((1, 5, 300, 3000))
    inside = f'<p backend_node_id="7" title="{mark(rng)}">&lt;{mark(rng)}</p>' * rng.choice((1, 50))
    xml = "<div>" * depth + inside + "</div>" * depth
    if rng.random() < 0.6:
        xml = damaged(rng, xml.encode()).decode(errors="replace")
    read_page(xml, is_cut=rng.random() < 0.5).texts({"7": "B"})


def prompt(rng: random.Random, folder: Path) -> None:
    """Reads one of SkillGen's prompts, with parts of it repeated many times."""
    pieces = [
        "Do it.", "\nTask: ", text(rng), "\nWebsite: ", mark(rng), "\nPrevious actions (done):\n",
        "  1. [a]  b -> CLICK", "\n\nAvailable candidate elements (bnid):\n",
        '  1. <a bnid="3" title="Home">', "\n\nCurrent page (html):\n```html\n",
        '<div bnid="3"/>', "\n```\n", "Go.",
    ]  # fmt: skip
    for _ in range(rng.randrange(3)):
        at = rng.randrange(len(pieces))
        pieces[at] = pieces[at] * rng.choice((2, 100, 700))
    if rng.random() < 0.4:
        del pieces[rng.randrange(len(pieces))]
    metadata: dict[str, Any] = {
        "benchmark": "mind2web", "annotation_id": "a" * 8, "action_idx": 0, "website": "w",
        "domain": "d", "op": "CLICK", "value": "", "target_bnids": ["3"], "candidate_bnids": ["3"],
    }  # fmt: skip
    record = {"input": "".join(pieces), "metadata": metadata}
    try:
        single_step(mutated(rng, record) if rng.random() < 0.3 else record)
    except ValueError as error:  # the caller adds the place
        raise TaskDataError(str(error)) from error
