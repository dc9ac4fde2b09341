"""ALFWorld's game files: where they come from, how they are checked, and the split of each item.

The official files are `json_2.1.1/<split>/<task>/<trial>/game.tw-pddl`, JSON with a planning domain
and problem, a grammar, and whether the game can be solved. They exist in two generations, which
differ in one command: `put apple 1 in/on fridge 1` (until 2024, without a walkthrough) and
`move apple 1 to fridge 1` (since then). An agent trained on one fails in the other, so they are
kept apart: `<generation>/json_2.1.1/...`; `games.jsonl.gz` lists all games.
"""

import gzip
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args
from zipfile import ZipFile

from stepagent.tasks.base import TaskDataError
from stepagent.tasks.data.archives import open_member, open_zip, tar_members
from stepagent.tasks.data.json_files import read_records
from stepagent.tasks.data.limited_reader import open_content
from stepagent.tasks.data.sources import Prepared, Source

Generation = Literal["move", "put"]
OfficialSplit = Literal["train", "valid_seen", "valid_unseen"]

TASK_TYPES = {
    "pick_and_place_simple": "pick",
    "look_at_obj_in_light": "examine",
    "pick_clean_then_place_in_recep": "clean",
    "pick_heat_then_place_in_recep": "heat",
    "pick_cool_then_place_in_recep": "cool",
    "pick_two_obj_and_place": "pick_two",
}
"""The six task types, with the short names used in tables of results."""

RELEASES = "https://github.com/alfworld/alfworld/releases/download"
SOURCES = (
    Source(
        url=f"{RELEASES}/0.4.2/json_2.1.3_tw-pddl.zip",
        file="json_2.1.3_tw-pddl.zip",
        sha256="5df77ea759f2211a4106082839ddbbb790f1ba4e7d097ed732cf453f72aa36cf",
    ),
    Source(url=f"{RELEASES}/0.2.2/json_2.1.1_tw-pddl.zip", file="json_2.1.1_tw-pddl.zip"),
)
"""The `move` generation, and the `put` generation."""

INDEX = "games.jsonl.gz"

PLACE = re.compile(
    rf"(?:^|/)({'|'.join(get_args(OfficialSplit))})/(\w[\w.+-]{{0,199}})/(\w[\w.+-]{{0,199}})/"
    r"game\.tw-pddl\Z",
    re.ASCII,
)
ARCHIVES = (".zip", ".tar", ".tar.xz", ".tar.gz", ".tgz")
GRAMMARS: dict[Generation, str] = {"put": '"put {o} in/on {r}"', "move": '"move {o} to {r}"'}


class InvalidGame(ValueError):
    """A game file cannot be used; the message is the reason without the file's name."""


def generation_of(game: dict[str, Any]) -> Generation:
    """The generation of a game; raises `InvalidGame` if it is neither of the two."""
    matching = [name for name, template in GRAMMARS.items() if template in game["grammar"]]
    if len(matching) != 1:
        raise InvalidGame(f"expected a grammar with either {' or '.join(GRAMMARS.values())}")
    return matching[0]


def read_game(data: bytes) -> dict[str, Any]:
    """Parses a game file; raises `InvalidGame` if it is damaged or not a game of ALFWorld."""
    try:
        game = json.loads(data)
    except (ValueError, RecursionError) as error:  # includes bytes that are not UTF-8
        raise InvalidGame(f"invalid JSON (incomplete file?): {error}") from None
    if not isinstance(game, dict):
        raise InvalidGame(f"expected an object, got {type(game).__name__}")
    for name in ("pddl_domain", "grammar", "pddl_problem"):
        if not isinstance(game.get(name), str):
            raise InvalidGame(f"expected text under {name!r}")
    for name in ("pddl_domain", "pddl_problem"):
        text = re.sub(r";[^\n]*", "", game[name])
        if "(define" not in text or text.count("(") != text.count(")"):
            raise InvalidGame(f"expected a complete PDDL definition under {name!r}")
    if not isinstance(game.get("solvable", False), bool):
        raise InvalidGame("expected true or false under 'solvable'")
    walkthrough = game.get("walkthrough", [])
    if not (isinstance(walkthrough, list) and all(isinstance(c, str) for c in walkthrough)):
        raise InvalidGame("expected a list of commands under 'walkthrough'")
    return game


def prepare(source: Path, out: Path, *, skip_invalid: bool) -> Prepared:
    """Copies all games at or below `source`, extracted or in archives, into `out`.

    As in ALFWorld itself, tasks with movable receptacles or slices are left out, and so are games
    that are not marked as solvable; they are counted as skipped. Raises `TaskDataError`.
    """
    counts: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    used: dict[Path, None] = {}
    hashes: dict[tuple[str, str], str] = {}
    for archive, place, read in _files(source):
        match = PLACE.search(place)
        if match is None:
            continue
        split, task, trial = match.groups()
        used[archive] = None
        if task.split("-")[0] not in TASK_TYPES or "Sliced" in task or task.count("-") != 4:
            skipped["other kind of task"] += 1
            continue
        data = read()
        try:
            game = read_game(data)
            if not game.get("solvable"):
                known = "solvable" in game
                skipped["unsolvable" if known else "not known to be solvable"] += 1
                continue
            generation = generation_of(game)
        except InvalidGame as error:
            if not skip_invalid:
                raise TaskDataError(f"{_shown(archive, place)}: {error}") from None
            skipped["invalid"] += 1
            continue
        key, digest = (generation, f"{split}/{task}/{trial}"), hashlib.sha256(data).hexdigest()
        if key in hashes:
            if hashes[key] != digest:
                raise TaskDataError(
                    f"{_shown(archive, place)}: differs from another file of the same name; "
                    "expected the files of a single release"
                )
            continue
        hashes[key] = digest
        counts[f"{split} ({generation})"] += 1
        file = out / game_file(generation, split, f"{task}/{trial}")
        file.parent.mkdir(parents=True)
        file.write_bytes(data)
    if not hashes:
        raise TaskDataError(
            f"{source}: no games of ALFWorld; expected {SOURCES[0].file}, or folders or "
            "archives with <train, valid_seen or valid_unseen>/<task>/<trial>/game.tw-pddl"
        )
    _write_index(out / INDEX, hashes)
    return Prepared(counts=dict(counts), read=tuple(used), skipped=dict(skipped))


def game_file(generation: str, split: str, item: str) -> Path:
    """Path of a game, relative to the task's folder."""
    return Path(generation, "json_2.1.1", split, *item.split("/"), "game.tw-pddl")


def read_index(path: Path) -> dict[Generation, dict[OfficialSplit, dict[str, str]]]:
    """The installed games: generation, split and item, with each file's hash; items in order."""
    games: dict[Generation, dict[OfficialSplit, dict[str, str]]] = {}
    for place, record in read_records(path):
        generation, split, item = (record.get(key) for key in ("generation", "split", "item"))
        digest = record.get("sha256")
        if (
            generation not in get_args(Generation)
            or not PLACE.fullmatch(f"{split}/{item}/game.tw-pddl")
            or not isinstance(digest, str)
        ):
            raise TaskDataError(f"{place}: not a game; install the data again")
        games.setdefault(generation, {}).setdefault(split, {})[str(item)] = digest  # type: ignore
    return games


def _write_index(path: Path, hashes: dict[tuple[str, str], str]) -> None:
    lines = []
    for (generation, place), digest in sorted(hashes.items()):
        split, item = place.split("/", 1)
        record = {"generation": generation, "split": split, "item": item, "sha256": digest}
        lines.append(json.dumps(record) + "\n")
    path.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))


def _files(source: Path) -> Iterator[tuple[Path, str, Callable[[], bytes]]]:
    """Yields game files: the file on disk, the game's name, and a function that reads it."""
    paths = [source] if source.is_file() else sorted(source.rglob("*"))
    for path in paths:
        if path.is_dir():
            continue
        if path.name == "game.tw-pddl":
            yield path, path.as_posix(), partial(game_bytes, path)
        elif path.name.endswith(ARCHIVES):
            yield from _members(path)


def _members(path: Path) -> Iterator[tuple[Path, str, Callable[[], bytes]]]:
    # Nothing is extracted: a member's name only identifies the game.
    if path.suffix == ".zip":
        with open_zip(path) as archive:
            for name in archive.namelist():
                if PLACE.search(name):
                    yield path, name, partial(_zipped_bytes, archive, path, name)
        return
    for info, opened in tar_members(path):
        if PLACE.search(info.name):
            yield path, info.name, lambda opened=opened: opened().all()  # type: ignore[misc]


def game_bytes(path: Path) -> bytes:
    """The content of a game file on disk; raises `TaskDataError`."""
    with open_content(path) as content:
        return content.all()


def _zipped_bytes(archive: ZipFile, path: Path, name: str) -> bytes:
    with open_member(archive, path, name) as content:
        return content.all()


def _shown(archive: Path, place: str) -> str:
    return place if place == archive.as_posix() else f"{archive}: {place}"
