"""ALFWorld: six kinds of household chores in a text world (Shridhar et al. 2021), text only.

An item is `<task>/<trial>` below the official split, e.g.
`pick_cool_then_place_in_recep-Lettuce-None-CounterTop-1/trial_T20190908_042713_075616`. The engine
is the original one (TextWorld's PDDL engine, ALFWorld's names for objects). Observations follow
the conventions of the field (ReAct, ETO): the banner is stripped, the task is the instruction and
not part of the first observation, and `You arrive at loc 5. ` is dropped.
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
from stepagent.tasks.data.files import data_folder, required
from stepagent.tasks.data.optional_packages import needs
from stepagent.tasks.episode import EpisodeEnv, Outcome, follow
from stepagent.types import Trajectory

DEV_SHARE = 0.05
EXPERT_LIMIT = 500
"""Actions of an expert before it has failed; those that solve a game take far fewer."""
PACKAGES = ("textworld", "fast-downward-textworld", "alfworld")


@dataclass(frozen=True, kw_only=True)
class AlfworldConfig:
    """How ALFWorld is played."""

    test: Literal["valid_seen", "valid_unseen"] = "valid_seen"
    """Official split that is the test split: 140 games in rooms seen in training, 134 in others."""
    grammar: Generation = "move"
    """Generation of the games: `move apple 1 to fridge 1` (since 2024) or `put apple 1 in/on
    fridge 1` (before; what ReAct and ETO played). Scores of the two are not comparable."""
    step_limit: int = 50
    """Actions in an episode. Others use 20 (IPR, AgentBench), 30, 40 (ETO) and 50 (GiGPO)."""
    own_expert: Literal["handcoded", "walkthrough"] = "handcoded"
    """A hand-coded policy that knows the goal only, with the game's walkthrough for what it cannot
    solve; or the walkthrough alone, which goes straight to where things are (`move` only)."""
    workers: int | None = None
    """Processes that play games; None: one for each core, at most 8."""
    engine: EngineLimits = EngineLimits()
    """How long they are waited for."""

    def __post_init__(self) -> None:
        """Raises ValueError for values that make no sense."""
        for name in ("step_limit", "workers"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}")
        if self.own_expert == "walkthrough" and self.grammar == "put":
            raise ValueError(
                "own_expert='walkthrough' needs grammar='move': the games that are put have none"
            )

    def make_task(self) -> "Alfworld":
        """The task under this protocol; raises ValueError for unknown names."""
        return Alfworld(self)


class AlfworldEnv(EpisodeEnv):
    """One agent in one game; the game is played in another process."""

    _task: "Alfworld"

    def __init__(self, task: "Alfworld", step_limit: int | None) -> None:
        """An environment of the task; its place in a process is taken at the first `reset`."""
        super().__init__(task, step_limit)
        self._game: Game | None = None
        self._item = ""

    def begin(self, item: str) -> tuple[str, str]:
        """The task's sentence, and what is seen in the room."""
        file = self._task.file(item)
        if self._game is None or not self._game.worker.alive:
            self._game = self._task.workers.take()
        self._item = item
        return first_texts(self._game.begin(file, self._task.sha256(item)))

    def act(self, action: str) -> Outcome:
        """What the command does; anything but a command that is possible now does nothing."""
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
        """Leaves the place in the process to others; the environment can be reset again."""
        self._running = False
        if self._game is not None:
            self._game.free()
            self._game = None


class Alfworld:
    """The benchmark, played from the files that `alfworld_games.prepare` made."""

    name = "alfworld"

    def __init__(self, config: AlfworldConfig, *, folder: Path | None = None) -> None:
        """Reads and starts nothing yet; without a folder the data is that of `data_folder`."""
        self.config = config
        self._folder = folder
        limit = config.workers or min(os.cpu_count() or 1, 8)
        cache = (folder or data_folder(self.name)) / "translated"
        self.workers = Workers(cache, limit, config.engine)
        self._lock = threading.Lock()
        self._games: dict[OfficialSplit, dict[str, str]] | None = None

    def items(self, split: Split) -> Sequence[str]:
        """Ids in alphabetical order; dev is the official training split's twentieth."""
        if split not in get_args(Split):
            raise ValueError(f"unknown split {split!r}: allowed: {', '.join(get_args(Split))}")
        if split == "test":
            return list(self._official(self.config.test))
        return [item for item in self._official("train") if is_dev(item) == (split == "dev")]

    def group(self, item: str) -> str:
        """Its task type, by the name that tables of results use, such as `heat`."""
        kind = TASK_TYPES.get(item.split("-")[0])
        if kind is None:
            raise ValueError(f"unknown item {item!r}: items are <task>/<trial>, see items()")
        return kind

    def make_env(self) -> AlfworldEnv:
        """A fresh environment with this task's step limit."""
        return AlfworldEnv(self, self.config.step_limit)

    def expert(self, item: str) -> Trajectory:
        """What the chosen expert does, whatever the step limit; see `AlfworldConfig.own_expert`."""
        if self.config.own_expert == "handcoded":
            try:
                return self._follow(item, Expert(goal_of(item), self.config.grammar), "handcoded")
            except ExpertFailed:
                if not self._walkthrough(item):
                    raise
        commands = self._walkthrough(item)
        if not commands:
            raise ExpertFailed(f"{item}: this game has no walkthrough; use own_expert='handcoded'")
        actions = iter(commands)
        return self._follow(item, lambda _: next(actions, None), "walkthrough")

    def metrics(self, episodes: Sequence[Trajectory]) -> dict[str, float]:
        """Success rates in percent: of all episodes, and of each task type that was played."""
        won: defaultdict[str, list[bool]] = defaultdict(list)
        for episode in episodes:
            details: Any = episode.metadata["details"]
            won["success_rate"].append(details["won"])
            won[f"success_rate_{details['task_type']}"].append(details["won"])
        names = ("success_rate", *(f"success_rate_{kind}" for kind in TASK_TYPES.values()))
        return {name: 100 * sum(won[name]) / len(won[name]) for name in names if name in won}

    def facts(self) -> dict[str, Any]:
        """The protocol for reports: engine, grammar, splits, step limit, what counts."""
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
        """Ends the processes; the next use starts them again."""
        self.workers.close()

    def file(self, item: str) -> Path:
        """The item's game; raises ValueError for an item that is not in the three splits."""
        return self._data(game_file(self.config.grammar, self.official_split(item), item))

    def official_split(self, item: str) -> OfficialSplit:
        """Where the item is from; raises ValueError for an item that is not in the splits."""
        for split in ("train", self.config.test):
            if item in self._index().get(split, {}):
                return split
        raise ValueError(f"unknown item {item!r}: items are <task>/<trial>, see items()")

    def sha256(self, item: str) -> str:
        """What the item's file had in it when it was prepared."""
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
                f"generation; there are: {', '.join(games) or 'none'}"
            )
        return games[split]

    def _index(self) -> dict[OfficialSplit, dict[str, str]]:
        with self._lock:
            if self._games is None:
                index = read_index(self._data(Path(INDEX)))
                if self.config.grammar not in index:
                    raise TaskDataError(
                        f"{self._data(Path(INDEX))}: no games of the {self.config.grammar!r} "
                        f"generation, only {', '.join(map(repr, index))}: set grammar"
                    )
                self._games = index[self.config.grammar]
            return self._games

    def _data(self, file: Path) -> Path:
        return required(self.name, str(file)) if self._folder is None else self._folder / file


def is_dev(item: str) -> bool:
    """Whether a game of the official training split belongs to dev."""
    digest = hashlib.sha256(item.encode()).digest()
    return int.from_bytes(digest[:8], "big") < DEV_SHARE * 2**64


def digest_of(games: dict[str, str]) -> str:
    """One hash for items with the hashes of their files, in whatever order."""
    lines = sorted(f"{item} {sha256}" for item, sha256 in games.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def goal_of(item: str) -> Goal:
    """The goal, which is in an item's name: `<type>-<object>-None-<receptacle or lamp>-<room>`."""
    kind, thing, _, place, _ = item.split("/")[0].split("-")
    return Goal(kind=TASK_TYPES[kind], thing=thing.lower(), place=place.lower())


def first_texts(text: str) -> tuple[str, str]:
    """Instruction and first observation in a game's first text, which also has a banner."""
    paragraphs = text.strip().split("\n\n")
    return paragraphs[-1], "\n".join(paragraphs[1:-1]) or NOTHING


def shown(text: str) -> str:
    """What the agent sees of an answer of the game."""
    if text.startswith("You arrive at loc "):
        text = text[text.find(". ") + 2 :]
    return text.strip() or NOTHING
