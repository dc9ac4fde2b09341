"""Small files in the formats of Mind2Web: made-up shops, pickled ranks, an encrypted `test.zip`."""

import json
import pickle
import struct
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from stepagent.tasks.mind2web.data import prepare

PARTS = ("train", "test_task", "test_website", "test_domain")
WORDS = ("basket", "search", "sign in", "red shoes", "blue hats", "help", "next page", "stores")
OPERATIONS = (("CLICK", ""), ("TYPE", "red shoes size 9"), ("SELECT", "Price: low to high"))
STEPS = 3
ELEMENTS = 24


def page(num_elements: int = ELEMENTS) -> str:
    """A shop with so many buttons, ids 100, 101 and so on, in shelves of four."""
    shelves = [
        f'<div backend_node_id="{10 + first // 4}">'
        + "".join(
            f'<button backend_node_id="{100 + n}" type="submit" class="btn {WORDS[n % 8]}">'
            f'<text backend_node_id="{1000 + n}">{WORDS[n % 8]} {n}</text></button>'
            for n in range(first, min(first + 4, num_elements))
        )
        + "</div>"
        for first in range(0, num_elements, 4)
    ]
    return f'<html backend_node_id="1"><body backend_node_id="2">{"".join(shelves)}</body></html>'


def element(element_id: str) -> dict[str, Any]:
    """A candidate as the data set has it."""
    return {"tag": "button", "backend_node_id": element_id, "attributes": "{}"}


def action(uid: str, targets: Sequence[str], operation: tuple[str, str]) -> dict[str, Any]:
    """A step on a page of 24 buttons, all of which are candidates."""
    others = [str(100 + n) for n in range(ELEMENTS) if str(100 + n) not in targets]
    return {
        "action_uid": uid,
        "raw_html": "<html>much more</html>",
        "cleaned_html": page(),
        "operation": {"op": operation[0], "original_op": operation[0], "value": operation[1]},
        "pos_candidates": [element(target) for target in targets],
        "neg_candidates": [element(other) for other in others],
    }


def web_task(annotation_id: str, domain: str = "Shopping") -> dict[str, Any]:
    """A web task of three steps; the first one's target has rank 0, then 7, then 23."""
    targets = [["107"], ["103", "115"], ["120"]]
    return {
        "annotation_id": annotation_id,
        "website": f"shop-{annotation_id[-1]}",
        "domain": domain,
        "subdomain": "Clothes",
        "confirmed_task": f"Buy the red shoes of {annotation_id}.",
        "action_reprs": [f"[button]  {WORDS[n]} -> CLICK" for n in range(STEPS)],
        "actions": [
            action(f"{annotation_id}-{n}", targets[n], OPERATIONS[n]) for n in range(STEPS)
        ],
    }


def ranks_of(task: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Ranks that put the first target where `web_task` says, and all others after their ids."""
    ranks = {}
    for step, wanted in zip(task["actions"], (0, 7, 23), strict=True):
        targets = [e["backend_node_id"] for e in step["pos_candidates"]]
        order = [e["backend_node_id"] for e in step["neg_candidates"]] + targets[1:]
        order.insert(wanted, targets[0])
        key = f"{task['annotation_id']}_{step['action_uid']}"
        ranks[key] = {element_id: rank for rank, element_id in enumerate(order)}
    return ranks


def write_ranks(path: Path, tasks: Sequence[Mapping[str, Any]], protocol: int = 4) -> None:
    """`scores_all_data.pkl` as a ranker leaves it: dicts with defaults, scores of numpy."""
    found: dict[str, defaultdict[str, dict[str, Any]]] = {
        "scores": defaultdict(dict),
        "ranks": defaultdict(dict),
    }
    for task in tasks:
        for step, ranks in ranks_of(task).items():
            found["ranks"][step] = dict(ranks)
            found["scores"][step] = {e: np.float32(-rank) for e, rank in ranks.items()}
    path.write_bytes(pickle.dumps(found, protocol=protocol))


def web_tasks(part: str) -> list[dict[str, Any]]:
    """Web tasks of a part, of two domains; of those of the training part 9 and 11 are for dev."""
    numbers = range(8, 13) if part == "train" else range(2)
    return [web_task(f"{part}-{n}", ("Shopping", "Travel")[n % 2]) for n in numbers]


def write_official(folder: Path) -> None:
    """All official parts as plain files, and the ranks."""
    for part in PARTS:
        (folder / part).mkdir(parents=True)
        (folder / part / f"{part}_0.json").write_text(json.dumps(web_tasks(part)))
    write_ranks(folder / "scores_all_data.pkl", [t for part in PARTS for t in web_tasks(part)])


def encrypted_zip(path: Path, files: Mapping[str, str], password: bytes) -> None:
    """An archive in the old encryption of zip, which Python reads but does not write."""
    body, directory = b"", b""
    for name, text in files.items():
        data, raw_name = text.encode(), name.encode()
        crc = zlib.crc32(data)
        payload = _encrypted(bytes(11) + bytes([crc >> 24]) + data, password)
        # Version, flags (encrypted), method (stored), time, date, CRC, sizes, length of the name.
        shared = struct.pack(
            "<HHHHHLLLHH", 20, 1, 0, 0, 33, crc, len(payload), len(data), len(raw_name), 0
        )
        directory += b"PK\1\2" + struct.pack("<H", 20) + shared
        directory += struct.pack("<HHHLL", 0, 0, 0, 0, len(body)) + raw_name
        body += b"PK\3\4" + shared + raw_name + payload
    count = len(files)
    end = struct.pack("<HHHHLLH", 0, 0, count, count, len(directory), len(body), 0)
    path.write_bytes(body + directory + b"PK\5\6" + end)


def _encrypted(data: bytes, password: bytes) -> bytes:
    keys = [305419896, 591751049, 878082192]

    def update(byte: int) -> None:
        keys[0] = _crc_step(keys[0], byte)
        keys[1] = ((keys[1] + (keys[0] & 255)) * 134775813 + 1) & 0xFFFFFFFF
        keys[2] = _crc_step(keys[2], keys[1] >> 24)

    for byte in password:
        update(byte)
    found = bytearray()
    for byte in data:
        mask = keys[2] | 2
        found.append(byte ^ (((mask * (mask ^ 1)) >> 8) & 255))
        update(byte)
    return bytes(found)


def _crc_step(crc: int, byte: int) -> int:
    return zlib.crc32(bytes([byte]), crc ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


@cache
def _prepared() -> TemporaryDirectory[str]:
    folder = TemporaryDirectory()
    write_official(Path(folder.name) / "official")
    (Path(folder.name) / "data").mkdir()
    prepare(Path(folder.name) / "official", Path(folder.name) / "data", skip_invalid=False)
    return folder


def prepared() -> Path:
    """The folder of the made-up data, prepared once for all tests."""
    return Path(_prepared().name) / "data"
