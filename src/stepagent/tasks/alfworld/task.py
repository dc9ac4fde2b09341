"""ALFWorld: six kinds of household chores in a text world (Shridhar et al. 2021), text only.

An item is `<task>/<trial>` of the official split, e.g.
`pick_cool_then_place_in_recep-Lettuce-None-CounterTop-1/trial_T20190908_042713_075616`. The engine
is the original one (TextWorld's PDDL engine, with ALFWorld's names for objects). Observations
follow the conventions of ReAct and ETO: the banner is removed, the task is the instruction and not
part of the first observation, and `You arrive at loc 5. ` is removed.
"""

import hashlib
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import JsonValue

from stepagent.tasks.alfworld.expert import Expert, Goal
from stepagent.tasks.alfworld.games import (
    INDEX,
    TASK_TYPES,
    Generation,
    OfficialSplit,
    game_bytes,
    game_file,
    read_game,
    read_index,
)
from stepagent.tasks.alfworld.workers import Game, Workers
from stepagent.tasks.base import NOTHING, EngineLimits, ExpertFailed, Split, TaskDataError
from stepagent.tasks.data.optional_packages import needs
from stepagent.tasks.data.sources import data_folder, required
from stepagent.tasks.episode import EpisodeEnv, Outcome, follow
from stepagent.types import Trajectory

DEV_SHARE = 0.05
EXPERT_LIMIT = 500
"""Most actions of an expert before it counts as failed; solving a game takes far fewer."""
PACKAGES = ("textworld", "fast-downward-textworld", "alfworld")


@dataclass(frozen=True, kw_only=True)
class AlfworldConfig:
    """Settings of ALFWorld: which games, how many steps an episode has, and which expert."""

    test: Literal["valid_seen", "valid_unseen"] = "valid_seen"
    """Official split used for testing: valid_seen has 140 games in rooms that training has shown,
    valid_unseen has 134 games in new rooms."""
    grammar: Generation = "move"
    """Generation of the games: move (move apple 1 to fridge 1; since 2024) or put (put apple 1
    in/on fridge 1; older, used by ReAct and ETO). Scores of the two are not comparable."""
    step_limit: int = 50
    """Most actions an episode may have before it is truncated; 50 as in GiGPO (ETO uses 40, IPR and
    AgentBench 20)."""
    own_expert: Literal["handcoded", "walkthrough"] = "handcoded"
    """Who demonstrates: handcoded, a policy that knows only the goal and falls back on the game's
    walkthrough, or walkthrough alone, which goes straight to the objects (grammar move only)."""
    workers: int | None = None
    """Number of processes that play games; by default one per core, at most 8."""
    engine: EngineLimits = EngineLimits()
    """Time limits of these processes, in seconds."""

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range and settings that contradict each other."""
        for name in ("step_limit", "workers"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}")
        if self.own_expert == "walkthrough" and self.grammar == "put":
            raise ValueError(
                "own_expert='walkthrough' needs grammar='move'; the 'put' games have no walkthrough"
            )

    def make_task(self) -> "Alfworld":
        """The task with these settings."""
        return Alfworld(self)


class AlfworldEnv(EpisodeEnv):
    """One agent in one game; the game is played in another process."""

    _task: "Alfworld"

    def __init__(self, task: "Alfworld", step_limit: int | None) -> None:
        """An environment of `task`; the first `reset` reserves a slot in a worker process."""
        super().__init__(task, step_limit)
        self._game: Game | None = None
        self._item = ""

    def begin(self, item: str) -> tuple[str, str]:
        """The sentence that states the task, and the view of the room."""
        file = self._task.file(item)
        if self._game is None or not self._game.worker.alive:
            self._game = self._task.workers.take()
        self._item = item
        return first_texts(self._game.begin(file, self._task.sha256(item)))

    def act(self, action: str) -> Outcome:
        """Executes a command; anything but a command that is possible now has no effect."""
        assert self._game is not None
        text, won = self._game.step(action)
        score = 100.0 if won else 0.0
        return Outcome(
            observation=shown(text),
            score=score,
            reward=float(won),
            terminated=won,
            success=won,
            details={
                "won": won,
                "task_type": self._task.group(self._item),
                "split": self._task.official_split(self._item),
                "grammar": self._task.config.grammar,
            },
        )

    def close(self) -> None:
        """Frees the slot in the worker process; `reset` can be called again later."""
        self._running = False
        if self._game is not None:
            self._game.free()
            self._game = None


class Alfworld:
    """The ALFWorld benchmark, played from the files that `games.prepare` wrote."""

    name = "alfworld"

    def __init__(self, config: AlfworldConfig, *, folder: Path | None = None) -> None:
        """Reads and starts nothing yet; `folder` is for data outside the usual `data_folder`."""
        self.config = config
        self._folder = folder
        limit = config.workers or min(os.cpu_count() or 1, 8)
        cache = (folder or data_folder(self.name)) / "translated"
        self.workers = Workers(cache, limit, config.engine)
        self._lock = threading.Lock()
        self._games: dict[OfficialSplit, dict[str, str]] | None = None

    def items(self, split: Split) -> Sequence[str]:
        """Ids in alphabetical order; dev is one in twenty of the official training games."""
        if split not in get_args(Split):
            raise ValueError(f"unknown split {split!r}: allowed: {', '.join(get_args(Split))}")
        if split == "test":
            return list(self._official(self.config.test))
        return [item for item in self._official("train") if is_dev(item) == (split == "dev")]

    def group(self, item: str) -> str:
        """The item's task type, by its short name in tables of results, such as `heat`."""
        kind = TASK_TYPES.get(item.split("-")[0])
        if kind is None:
            raise ValueError(f"unknown item {item!r}: items are <task>/<trial>, see items()")
        return kind

    def make_env(self) -> AlfworldEnv:
        """A new environment with this task's step limit."""
        return AlfworldEnv(self, self.config.step_limit)

    def expert(self, item: str) -> Trajectory:
        """Plays the configured expert (`AlfworldConfig.own_expert`), without the step limit.

        Raises `ExpertFailed` if it does not solve the game.
        """
        if self.config.own_expert == "handcoded":
            try:
                return self._follow(item, Expert(goal_of(item), self.config.grammar), "handcoded")
            except ExpertFailed:
                if not self._walkthrough(item):
                    raise
        commands = self._walkthrough(item)
        if not commands:
            raise ExpertFailed(f"{item}: the game has no walkthrough; use own_expert='handcoded'")
        actions = iter(commands)
        return self._follow(item, lambda _: next(actions, None), "walkthrough")

    def metrics(self, episodes: Sequence[Trajectory]) -> dict[str, float]:
        """Success rates in percent, over all episodes and for each task type that was played."""
        won: defaultdict[str, list[bool]] = defaultdict(list)
        for episode in episodes:
            details: Any = episode.metadata["details"]
            won["success_rate"].append(details["won"])
            won[f"success_rate_{details['task_type']}"].append(details["won"])
        names = ("success_rate", *(f"success_rate_{kind}" for kind in TASK_TYPES.values()))
        return {name: 100 * sum(won[name]) / len(won[name]) for name in names if name in won}

    def facts(self) -> dict[str, Any]:
        """The evaluation protocol for reports: engine, grammar, splits, step limit, scoring."""
        games = self._index()
        with needs("alfworld"):
            engine = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
        splits = {"train+dev": "train", "test": self.config.test}
        used = {name: games[split] for name, split in splits.items() if split in games}
        return {
            "task": self.name,
            "engine": engine,
            "grammar": self.config.grammar,
            "step_limit": self.config.step_limit,
            "official_test": self.config.test,
            "games": {name: len(items) for name, items in used.items()},
            "games_sha256": {name: digest_of(items) for name, items in used.items()},
            "dev": f"{DEV_SHARE:.0%} of official train, by a hash of the id",
            "score": "100 if the game is won, else 0",
            "success": "the game is won within the step limit",
            "goals": "templates, not human",
            "expert": self.config.own_expert,
        }

    def close(self) -> None:
        """Ends the worker processes; the next use starts new ones."""
        self.workers.close()

    def file(self, item: str) -> Path:
        """Path of the item's game file; raises ValueError for an item in none of the splits."""
        return self._data(game_file(self.config.grammar, self.official_split(item), item))

    def official_split(self, item: str) -> OfficialSplit:
        """The item's official split; raises ValueError for an item in none of the splits."""
        for split in ("train", self.config.test):
            if item in self._index().get(split, {}):
                return split
        raise ValueError(f"unknown item {item!r}: items are <task>/<trial>, see items()")

    def sha256(self, item: str) -> str:
        """Hash of the item's file when it was installed."""
        return self._index()[self.official_split(item)][item]

    def _walkthrough(self, item: str) -> list[str]:
        file = self.file(item)
        try:
            return list(read_game(game_bytes(file)).get("walkthrough") or [])
        except ValueError as error:
            raise TaskDataError(f"{file}: {error}") from None

    def _follow(self, item: str, choose: Callable[[str], str | None], expert: str) -> Trajectory:
        metadata: dict[str, JsonValue] = {
            "task_type": self.group(item),
            "split": self.official_split(item),
            "grammar": self.config.grammar,
            "expert": expert,
        }
        return follow(self, AlfworldEnv(self, EXPERT_LIMIT), item, choose, metadata)

    def _official(self, split: OfficialSplit) -> dict[str, str]:
        games = self._index()
        if split not in games:
            raise TaskDataError(
                f"{self._data(Path(INDEX))}: no {split} games of the {self.config.grammar!r} "
                f"generation; installed splits: {', '.join(games) or 'none'}"
            )
        return games[split]

    def _index(self) -> dict[OfficialSplit, dict[str, str]]:
        with self._lock:
            if self._games is None:
                index = read_index(self._data(Path(INDEX)))
                if self.config.grammar not in index:
                    raise TaskDataError(
                        f"{self._data(Path(INDEX))}: no games of the {self.config.grammar!r} "
                        f"generation, only {', '.join(map(repr, index))}; change grammar"
                    )
                self._games = index[self.config.grammar]
            return self._games

    def _data(self, file: Path) -> Path:
        return required(self.name, str(file)) if self._folder is None else self._folder / file


def is_dev(item: str) -> bool:
    """Whether a game of the official training split belongs to our dev split."""
    digest = hashlib.sha256(item.encode()).digest()
    return int.from_bytes(digest[:8], "big") < DEV_SHARE * 2**64


def digest_of(games: dict[str, str]) -> str:
    """One hash over all items and the hashes of their files, independent of their order."""
    lines = sorted(f"{item} {sha256}" for item, sha256 in games.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def goal_of(item: str) -> Goal:
    """The goal in an item's name, `<type>-<object>-None-<receptacle or lamp>-<room>`."""
    kind, thing, _, place, _ = item.split("/")[0].split("-")
    return Goal(kind=TASK_TYPES[kind], thing=thing.lower(), place=place.lower())


def first_texts(text: str) -> tuple[str, str]:
    """Splits a game's first text, without its banner, into instruction and first observation."""
    paragraphs = text.strip().split("\n\n")
    return paragraphs[-1], "\n".join(paragraphs[1:-1]) or NOTHING


def shown(text: str) -> str:
    """The observation in an answer of the game."""
    if text.startswith("You arrive at loc "):
        text = text[text.find(". ") + 2 :]
    return text.strip() or NOTHING
