"""Steps per second and seconds to begin a game in ALFWorld: ours beside alfworld's own batch env.

Both play the same games with as many processes, each game with the same commands: its walkthrough
without the last one, then looks at the room, and so `--steps` actions that never end the episode.
Ours is measured twice, before and after it has kept its translations of the games. Times are those
of one player, so that `steps_per_second` is that of all players together.

    python benchmarks/alfworld_speed.py --folder FOLDER --games 8 --players 2

FOLDER is what `stepagent download alfworld` made, with walkthroughs. Prints one JSON line for each.
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
    """What is done in a game."""
    walkthrough = json.loads(file.read_bytes())["walkthrough"][:-1]
    return [*walkthrough, *islice(cycle(["look", "inventory"]), steps)][:steps]


def ours(task: Alfworld, items: list[str], steps: int, players: int) -> dict[str, float]:
    """Each player plays every so-manieth game in an environment of its own."""

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
    """Batches of games, made as alfworld's `init_env` makes them, after one that is not timed."""
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
    """Seconds of each player become rates."""
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
        parser.error("--games must be divisible by --players: all players play as many games")
    with TemporaryDirectory() as empty:
        for path in options.folder.iterdir():
            if path.name != "translated":
                Path(empty, path.name).symlink_to(path.resolve())
        config = AlfworldConfig(step_limit=options.steps + 1, workers=options.players)
        task = Alfworld(config, folder=Path(empty))
        every = len(task.items("test")) // options.games
        if every < 2:
            parser.error("--games must be at most half of the test split: one more is to warm up")
        items = list(task.items("test")[::every])[: options.games]
        size = (options.steps, options.players)
        outside = task.items("test")[1]
        warm_up = [task.make_env() for _ in range(options.players)]
        for env in warm_up:  # starts the processes, whose imports are not the question
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
