"""Measures peak memory of SFT and both kinds of reflection with LoRA, in separate processes.

    python benchmarks/memory.py --policy FOLDER --demonstrations FILE --held-out FILE

With one model in memory, inverse reflection should need little more than SFT. Prints one JSON line.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from stepagent.methods import NOVICE, REFLECTIONS


def peak_mb(*arguments: str) -> float:
    """Largest resident memory of one `stepagent` command, in MB."""
    command = [sys.executable, "-m", "stepagent", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {' '.join(command)}")
    return usage.ru_maxrss / 1024


def main() -> None:
    """Runs the commands one after another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", required=True)
    parser.add_argument("--demonstrations", required=True)
    parser.add_argument("--held-out", required=True)
    parser.add_argument("--rank", default="16")
    options = parser.parse_args()
    own = ("--demonstrations", options.demonstrations, "--lora.rank", options.rank)
    with tempfile.TemporaryDirectory() as name:
        novice = str(Path(name) / "novice")
        peaks = {
            NOVICE: peak_mb(
                "sft", "--model", options.policy, *own, "--out", novice,
                "--sft.epochs", "1", "--sft.batch-size", "2",
            )
        }  # fmt: skip
        for method in REFLECTIONS:
            peaks[method] = peak_mb(
                "reflect", "--method", method, "--policy", novice, *own,
                "--held-out", options.held_out, "--out", str(Path(name) / method),
                "--implicit.epochs", "1", "--implicit.batch-size", "2",
                "--inverse.ppo.epochs", "1", "--inverse.ppo.batch-size", "2",
                "--inverse.discriminator.batch-size", "2",
            )  # fmt: skip
    ratios = {f"{m}_to_{NOVICE}": round(peaks[m] / peaks[NOVICE], 3) for m in REFLECTIONS}
    print(json.dumps({**{m: round(p) for m, p in peaks.items()}, **ratios}))


if __name__ == "__main__":
    main()
