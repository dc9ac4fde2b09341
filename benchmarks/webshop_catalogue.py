"""Measures time and memory to prepare and to open WebShop's catalogue.

Products are synthetic: titles, descriptions and features of words drawn by Zipf's law, with the
lengths of the 1,000 published ones, a third with two options. Preparing is measured in one process,
opening (up to the first page) and shopping in another. Seconds are processor time.

    python benchmarks/webshop_catalogue.py --products 100000

Prints one JSON line.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from stepagent.tasks.webshop.data import prepare
from stepagent.tasks.webshop.task import WebShop

DEPARTMENTS = ("beauty", "electronics", "fashion", "garden", "grocery")


def write_files(folder: Path, num_products: int) -> None:
    """Writes synthetic versions of the two official files."""
    made = random.Random(0)
    vocabulary = [f"{made.choice('bcdfgklmnprst')}{number:x}" for number in range(50_000)]
    weights = [1 / rank for rank in range(1, len(vocabulary) + 1)]
    pool = made.choices(vocabulary, weights, k=1_000_000)

    def text(length: int) -> str:
        start = made.randrange(len(pool) - length)
        return " ".join(pool[start : start + length])

    attributes = {}
    with (folder / "items_shuffle.json").open("w", encoding="utf-8") as file:
        for number in range(num_products):
            asin = f"B{number:09}"
            department = made.choice(DEPARTMENTS)
            options = {
                name: [{"value": f"{value} {made.randrange(1000)}"} for value in text(6).split()]
                for name in ("Color", "Size")
            }
            product = {
                "asin": asin, "name": text(18), "full_description": text(60),
                "small_description": [text(15) for _ in range(5)],
                "pricing": f"${made.uniform(5, 500):.2f}",
                "customization_options": options if number % 3 == 0 else "",
                "category": department, "query": text(2),
                "product_category": f"{department} \u203a {text(1)} \u203a {text(1)}",
            }  # fmt: skip
            file.write(("[" if number == 0 else ",\n") + json.dumps(product))
            wanted = text(2).split()
            attributes[asin] = {
                "attributes": wanted, "instruction": f"Find me {text(3)}",
                "instruction_attributes": wanted,
            }  # fmt: skip
        file.write("]")
    (folder / "items_ins_v2.json").write_text(json.dumps(attributes), encoding="utf-8")


def shop(folder: Path, num_episodes: int) -> dict[str, Any]:
    """Measures seconds to the first page, and steps per second of each kind of action."""
    begun = time.process_time()
    task = WebShop(folder=folder)
    env = task.make_env()
    env.reset(options={"item": "synthetic/0"})
    opened = time.process_time()
    num_steps = 0
    for number in range(num_episodes):
        _, info = env.reset(options={"item": f"synthetic/{number}"})
        results = env.step(f"search[{info['instruction']}]")[0]
        asin = next(piece for piece in results.split(" [SEP] ") if piece.startswith("B0"))
        for action in (asin, "features", "< prev", "buy now"):
            env.step(f"click[{action}]")
        num_steps += 5
    seconds = time.process_time() - opened
    return {"open_seconds": opened - begun, "steps_per_second": num_steps / seconds}


def in_a_process(stage: str, folder: Path, num_episodes: int) -> dict[str, Any]:
    """Runs a stage in a new process; returns its measurements and peak memory."""
    command = [sys.executable, __file__, "--stage", stage, "--folder", str(folder)]
    command += ["--episodes", str(num_episodes)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    """Measures all stages, or a single one in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--products", type=int, default=100_000)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--stage", choices=("prepare", "shop"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage is None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for part in ("source", "out"):
                (folder / part).mkdir()
            write_files(folder / "source", args.products)
            result: dict[str, Any] = {"products": args.products}
            for stage in ("prepare", "shop"):
                found = in_a_process(stage, folder, args.episodes)
                result |= {key: round(value, 2) for key, value in found.items()}
            size = sum(file.stat().st_size for file in (folder / "out").rglob("*"))
            result["disk_mb"] = round(size / 1e6)
        print(json.dumps(result))
        return
    if args.stage == "prepare":
        begun = time.process_time()
        prepare(args.folder / "source", args.folder / "out", skip_invalid=False)
        found = {"prepare_seconds": time.process_time() - begun}
    else:
        found = shop(args.folder / "out", args.episodes)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(found | {f"{args.stage}_peak_mb": peak}))


if __name__ == "__main__":
    main()
