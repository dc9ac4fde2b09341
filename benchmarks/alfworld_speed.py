"""Compares the speed of our ALFWorld environment with alfworld's own batch environment.

Both play the same games with the same number of processes and the same `--steps` commands per game:
its walkthrough without the last command, then `look` and `inventory`, so that no episode ends.
Ours is measured twice, without and with cached translations of the games. `seconds_to_begin` is the
mean time to start a game; `steps_per_second` is that of all players together.

    python benchmarks/alfworld_speed.py --folder FOLDER --games 8 --players 2

FOLDER is the one that `stepagent download alfworld` wrote, with walkthroughs. Prints one JSON line
for each environment.
"""

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import textworld
import textworld.gym
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler, AlfredInfos

from stepagent.tasks.alfworld.task import Alfworld, AlfworldConfig


def commands(file: Path, steps: int) -> list[str]:
    """The commands that are played in a game."""
    walkthrough = json.loads(file.read_bytes())["walkthrough"][:-1]
    return [*walkthrough, *islice(cycle(["look", "inventory"]), steps)][:steps]


def ours(task: Alfworld, items: list[str], steps: int, players: int) -> dict[str, float]:
    """Measures ours: player i of n plays games i, i + n, ... in its own environment."""

    def play(mine: list[str]) -> tuple[float, float]:
        env, begun, stepped = task.make_env(), 0.0, 0.0
        for item in mine:
            todo, start = commands(task.file(item), steps), time.perf_counter()
            env.reset(options={"item": item})
            middle = time.perf_counter()
            for command in todo:
                env.step(command)
            begun += middle - start
            stepped += time.perf_counter() - middle
        env.close()
        return begun, stepped

    with ThreadPoolExecutor(players) as pool:
        shares = [items[start::players] for start in range(players)]
        times = list(pool.map(play, shares))
    return rates([t[0] for t in times], [t[1] for t in times], len(items), steps)


def theirs(
    task: Alfworld, items: list[str], steps: int, players: int, warm_up: str
) -> dict[str, float]:
    """Measures alfworld's batch environment, made as its `init_env` does, after a warm-up game."""
    env_id = textworld.gym.register_games(
        [str(task.file(item)) for item in items],
        textworld.EnvInfos(won=True, admissible_commands=True, extras=["gamefile"]),
        batch_size=players,
        asynchronous=True,
        max_episode_steps=steps + 1,
        wrappers=[AlfredDemangler(shuffle=False), AlfredInfos],
    )
    env, begun, stepped = textworld.gym.make(env_id), 0.0, 0.0
    env.batch_env.load([str(task.file(warm_up))] * players)
    env.batch_env.reset()
    for _ in range(len(items) // players):
        start = time.perf_counter()
        _, infos = env.reset()
        middle = time.perf_counter()
        for batch in zip(*(commands(Path(f), steps) for f in infos["extra.gamefile"]), strict=True):
            env.step(list(batch))
        begun += middle - start
        stepped += time.perf_counter() - middle
    env.close()
    return rates([begun] * players, [stepped] * players, len(items), steps)


def rates(begun: list[float], stepped: list[float], games: int, steps: int) -> dict[str, float]:
    """Converts the seconds of each player to rates."""
    return {
        "seconds_to_begin": round(sum(begun) / games, 3),
        "steps_per_second": round(games * steps * len(stepped) / sum(stepped), 1),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--games", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--players", type=int, default=2)
    options = parser.parse_args()
    if options.games % options.players:
        parser.error("--games must be divisible by --players: all players play equally many games")
    with TemporaryDirectory() as empty:
        for path in options.folder.iterdir():
            if path.name != "translated":
                Path(empty, path.name).symlink_to(path.resolve())
        config = AlfworldConfig(step_limit=options.steps + 1, workers=options.players)
        task = Alfworld(config, folder=Path(empty))
        every = len(task.items("test")) // options.games
        if every < 2:
            parser.error("--games must be at most half of the test split: one more is the warm-up")
        items = list(task.items("test")[::every])[: options.games]
        size = (options.steps, options.players)
        outside = task.items("test")[1]
        warm_up = [task.make_env() for _ in range(options.players)]
        for env in warm_up:  # starts the processes, so that their imports are not timed
            env.reset(options={"item": outside})
        for env in warm_up:
            env.close()
        results = {"ours, first time": ours(task, items, *size)}
        results["alfworld"] = theirs(task, items, *size, outside)
        results["ours, again"] = ours(task, items, *size)
        task.close()
    for name, result in results.items():
        faster = {
            "begin_ratio": results["alfworld"]["seconds_to_begin"] / result["seconds_to_begin"],
            "step_ratio": result["steps_per_second"] / results["alfworld"]["steps_per_second"],
        }
        ratios = {key: round(value, 1) for key, value in faster.items()}
        print(json.dumps({"env": name, "games": len(items), **result, **ratios}))


if __name__ == "__main__":
    main()
