"""Measures the reward of WebShop's scripted expert on all goals, and the speed of the shop.

    python benchmarks/webshop_expert.py --goals synthetic
    python benchmarks/webshop_expert.py --goals human

Uses the data that `stepagent download webshop` prepared, or --folder. Prints one JSON line. Speed
is in steps per second of processor time, on one core.
"""

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from statistics import fmean

from stepagent.tasks.webshop.expert import plan, queries
from stepagent.tasks.webshop.task import WebShop, WebShopConfig


def main() -> None:
    """Plays every goal of all splits once, or the first --limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--goals", choices=("synthetic", "human"), default="synthetic")
    parser.add_argument("--tagger", default="rules")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()
    task = WebShop(WebShopConfig(goals=args.goals, tagger=args.tagger), args.folder)
    env = task.make_env()
    rewards, lengths, seconds = [], [], 0.0
    searches = Counter[int]()
    num_goals = min(len(task.shop.goals), args.limit or len(task.shop.goals))
    for number in range(num_goals):
        goal = task.shop.goals[number]
        actions = plan(goal, task.shop.search)
        begun = time.process_time()
        env.reset(options={"item": f"{args.goals}/{number}"})
        reward = 0.0
        for action in actions:
            reward = env.step(action)[4]["details"]["reward"]
        seconds += time.process_time() - begun
        rewards.append(reward)
        lengths.append(len(actions))
        if actions:
            searches[queries(goal).index(actions[0][len("search[") : -1])] += 1
    print(
        json.dumps(
            {
                "goals": args.goals,
                "num_goals": num_goals,
                "score": round(100 * fmean(rewards), 2),
                "success_rate": round(100 * fmean(reward == 1 for reward in rewards), 2),
                "never_found": lengths.count(0),
                "mean_actions": round(fmean(lengths), 2),
                "most_actions": max(lengths),
                "searches": dict(sorted(searches.items())),
                "steps_per_second": round(sum(lengths) / seconds),
            }
        )
    )


if __name__ == "__main__":
    main()
