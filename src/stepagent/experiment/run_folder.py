"""The names in a run folder: the only module that builds or parses them.

    config.json, metrics.jsonl, results.json, summary.md, demonstrations.jsonl
    units/data, base, sft, sft-dev, {method}-round{n}, {method}-measure, {method}-test, results
    practice/demonstrations-dev.jsonl, {method}-round{n}.jsonl
    episodes/{method}-dev-round{n}.jsonl, {method}-test.jsonl

Methods are called by their keys in `METHODS`; the novice is round 0 of all of them.
"""

import re
from typing import NamedTuple

from stepagent.methods import NOVICE

CONFIG = "config.json"
METRICS = "metrics.jsonl"
RESULTS_JSON = "results.json"
SUMMARY = "summary.md"
REPORT = "report.html"
DEMONSTRATIONS = "demonstrations.jsonl"
UNITS = "units"
PRACTICE = "practice"
EPISODES = "episodes"
PARTS = (PRACTICE, EPISODES, UNITS)
"""Folders within a run folder."""
HELD_OUT = f"{PRACTICE}/demonstrations-dev.jsonl"
"""The expert's trajectories of the dev items, on which nothing is learnt."""

DATA = "data"
BASE = "base"
NOVICE_DEV = f"{NOVICE}-dev"
START = "round0"
"""The policy that `stepagent reflect` was given."""
RESULTS = "results"
"""Units that are not of a round."""

PANELS_FILE = "panels.json"
DEV_FILE = "dev.json"
TEST_FILE = "metrics.json"
CHOSEN_FILE = "best_round.json"
COMPARED_FILE = "held_out.json"
"""Files in the folders of units."""


class Round(NamedTuple):
    """A round of a method."""

    method: str
    number: int


class Panel(NamedTuple):
    """The episodes of a method on a panel; `number` is None for the round that was chosen."""

    method: str
    split: str
    number: int | None


def round_unit(method: str, number: int) -> str:
    """The unit whose folder holds the policy after a round, for round 0 the novice."""
    return f"{method}-round{number}" if number else NOVICE


def measure_unit(method: str) -> str:
    """The unit in which the policy of the last round is measured."""
    return f"{method}-measure"


def tested_unit(method: str) -> str:
    """The unit in which the chosen round is tested."""
    return f"{method}-test"


def dev_unit(method: str, number: int) -> str:
    """The unit whose folder says how a round's policy does on dev."""
    return round_unit(method, number) if number else NOVICE_DEV


def dev_name(method: str, number: int) -> str:
    """What a round's evaluation on dev is called."""
    return f"{method}-dev-round{number}"


def practice_file(method: str, number: int) -> str:
    """Held-out steps that the policy practised, with the step rewards of a round."""
    return f"{PRACTICE}/{method}-round{number}.jsonl"


def episodes_file(name: str) -> str:
    """The episodes of an evaluation (`dev_name`) or of a test (`tested_unit`)."""
    return f"{EPISODES}/{name}.jsonl"


def unit_path(unit: str) -> str:
    """The folder of a unit, by its path within the run folder."""
    return f"{UNITS}/{unit}"


def unit_file(unit: str, name: str) -> str:
    """A file in the folder of a unit, by its path within the run folder."""
    return f"{unit_path(unit)}/{name}"


def name_in_unit(file: str) -> str | None:
    """The name within its unit's folder of a file in the run folder; None if it is elsewhere."""
    top, *rest = file.split("/")
    return "/".join(rest[1:]) if top == UNITS else None


LEFT_OUT = "left out"
"""Where config.json counts trajectories of the user's own that are not used, by reason."""

WITHOUT_ITEM = "without an item of the environment"
"""Where config.json counts demonstrations that take no detours."""


def lost_key(name: str) -> str:
    """Where config.json lists the episodes that an evaluation lost."""
    return f"{name}, lost"


def too_long_key(use: str) -> str:
    """Where config.json lists trajectories left out because they exceed the context."""
    return f"{use}, too long"


def round_of_unit(unit: str) -> Round | None:
    """The round whose policy is in the folder of a unit."""
    if unit == NOVICE:
        return Round(NOVICE, 0)
    match = re.fullmatch(r"(.+)-round(\d+)", unit)
    return Round(match[1], int(match[2])) if match else None


def round_of_practice(name: str) -> Round | None:
    """The round of a file in practice/."""
    match = re.fullmatch(rf"{PRACTICE}/(.+)-round(\d+)\.jsonl", name)
    return Round(match[1], int(match[2])) if match else None


def panel_of_episodes(name: str) -> Panel | None:
    """What a file in episodes/ holds."""
    match = re.fullmatch(rf"{EPISODES}/(.+?)-([^-]+?)(?:-round(\d+))?\.jsonl", name)
    return Panel(match[1], match[2], int(match[3]) if match[3] else None) if match else None
