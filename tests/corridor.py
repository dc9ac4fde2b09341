"""A small foreign environment, in Gymnasium's form and in the older one: fetch from a corridor.

Rooms lie in a row. The agent goes east or west until it sees the treasure, and takes it.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import uvicorn
from gymnasium import spaces
from starlette.types import ASGIApp

from stepagent.tasks.adapters.foreign import Items
from stepagent.tasks.adapters.gymnasium import GymTask
from stepagent.tasks.adapters.scoring import Scoring
from stepagent.tasks.serving.server import _listening

NUM_ROOMS = 6

ITEMS: Items = {
    "train": {f"train/{n}": {"seed": n} for n in range(8)},
    "dev": {f"dev/{n}": {"seed": 100 + n} for n in range(3)},
    "test": {f"test/{n}": {"seed": 200 + n} for n in range(4)},
}


class Corridor:
    """The world itself; taking the treasure is worth 1, and seeing it first 0.25."""

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.room, self.treasure = (int(n) for n in random.permutation(NUM_ROOMS)[:2])
        self.reward = 0.0

    def look(self) -> str:
        holds = "a treasure" if self.room == self.treasure else "dust"
        return f"Room {self.room} of {NUM_ROOMS}. You see {holds}."

    def act(self, action: str) -> tuple[str, float, bool]:
        """Observation, reward, and whether the treasure was taken."""
        moves = {"go east": 1, "go west": -1}
        if action == "take" and self.room == self.treasure:
            return "You take the treasure.", 1.0, True
        if action not in moves:
            return "You cannot do that.", 0.0, False
        self.room = min(max(self.room + moves[action], 0), NUM_ROOMS - 1)
        return self.look(), 0.25 if self.room == self.treasure else 0.0, False


def explorer(item: str) -> Callable[[str], str | None]:
    """Goes west to the wall, then east, until it sees the treasure."""
    is_searching_west = True

    def choose(observation: str) -> str:
        nonlocal is_searching_west
        if "a treasure" in observation:
            return "take"
        is_searching_west = is_searching_west and "Room 0" not in observation
        return "go west" if is_searching_west else "go east"

    return choose


class CorridorEnv(gym.Env[str, str]):
    """In Gymnasium's form: five values."""

    observation_space = spaces.Text(200)
    action_space = spaces.Text(200)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        assert seed is not None
        self.world = Corridor(seed)
        self.is_closed = False
        return self.world.look(), {"goal": "Take the treasure."}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, is_over = self.world.act(action)
        return observation, reward, is_over, False, {"solved": is_over, "score": 50 * is_over}

    def close(self) -> None:
        self.is_closed = True


class OldCorridorEnv:
    """In the form of `gym` before 0.26: `seed`, an observation alone, four values."""

    def __init__(self, limit: int = 1000) -> None:
        self.limit = limit

    def seed(self, seed: int) -> None:
        self._seed = seed

    def reset(self) -> str:
        self.world, self.num_steps = Corridor(self._seed), 0
        return self.world.look()

    def step(self, action: str) -> tuple[str, float, bool, dict[str, Any]]:
        self.num_steps += 1
        observation, reward, is_over = self.world.act(action)
        is_late = self.num_steps == self.limit
        info = {"TimeLimit.truncated": not is_over} if is_late else {}
        return observation, reward, is_over or is_late, info

    def close(self) -> None:
        pass


def corridor_task(
    make_env: Callable[[], Any] = CorridorEnv, *, step_limit: int | None = None
) -> GymTask:
    """The corridor as a task: its last reward is the score."""
    return GymTask(
        "corridor",
        make_env,
        ITEMS,
        instruction="Take the treasure.",
        scoring=Scoring(of="last"),
        step_limit=step_limit,
        group=lambda item: item.split("/")[0],
        expert=explorer,
    )


@contextmanager
def running(app: ASGIApp, **options: Any) -> Iterator[str]:
    """An application on loopback while the block runs; its address."""
    with _listening("127.0.0.1", 0) as listener:
        config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1, **options)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
