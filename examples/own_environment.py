"""From novice to expert in an environment of your own, with a small model made from scratch.

    python examples/own_environment.py --out runs/household

An agent fetches things that are kept in three rooms. The expert knows where everything is; the
novice has seen a few errands only, and goes wrong. A wrong action costs a step and nothing else.

The same environment from the command line:

    stepagent train own --env examples/own_environment.py:HOUSEHOLD --model scratch --out runs/own
"""

import argparse
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym

import stepagent

ROOMS = {
    "kitchen": ("fork", "pan", "cup", "jam"),
    "bathroom": ("soap", "towel", "comb", "razor"),
    "garden": ("rake", "hose", "spade", "shears"),
}
ROOM_OF = {thing: room for room, things in ROOMS.items() for thing in things}


class Household(gym.Env[str, str]):
    """Three things have to be fetched, one after the other; each is worth a third."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """The seed draws the things."""
        self.wanted, self.room = random.Random(seed).sample(sorted(ROOM_OF), 3), "hall"
        return f"You are in the hall. Fetch the {self.wanted[0]}.", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """`go to ROOM` or `take THING`."""
        verb, _, name = action.rpartition(" ")
        observation, reward = "Nothing happens.", 0.0
        if verb == "go to" and name in ROOMS:
            self.room, observation = name, f"You are in the {name}."
        elif verb == "take" and (name != self.wanted[0] or ROOM_OF[name] != self.room):
            observation = f"There is no {name} to take here."
        elif verb == "take":
            self.wanted, reward, observation = self.wanted[1:], 1 / 3, f"You have the {name}."
            observation += f" Fetch the {self.wanted[0]}." if self.wanted else " That is all."
        return observation, reward, not self.wanted, False, {}


def expert(item: str) -> Callable[[str], str]:
    """Goes to the thing that was asked for, and takes it."""
    thing = room = ""

    def act(observation: str) -> str:
        nonlocal thing, room
        if "Fetch the " in observation:
            thing = observation.split("Fetch the ")[1].rstrip(".")
        if room == ROOM_OF[thing]:
            return f"take {thing}"
        room = ROOM_OF[thing]
        return f"go to {room}"

    return act


HOUSEHOLD = stepagent.GymTask(
    "household", Household, instruction="Fetch what is asked for.", step_limit=9, expert=expert
)

ADAM = stepagent.OptimizerConfig(learning_rate=1e-3)
SHORT = stepagent.Decoding(max_new_tokens=16)
SETTINGS = stepagent.TrainConfig(
    task=None,
    data=stepagent.DataConfig(sft=8, reflection=40, shared=8, dev=12, test=50),
    model=stepagent.TinyConfig(vocab_size=400, hidden_size=96, context=1024),
    pretrain=stepagent.PretrainConfig(
        # With all names exchanged the model learns to copy names, not which thing is where.
        renamed=1.0,
        copying=stepagent.SFTConfig(epochs=8, batch_size=1, optimizer=ADAM),
    ),
    sft=stepagent.SFTConfig(epochs=3, batch_size=1, optimizer=ADAM),
    methods=("sft_more", "implicit"),
    rounds=2,
    detours=1,
    inspection=stepagent.InspectionConfig(num_actions=2, decoding=SHORT),
    sft_more=stepagent.MoreSFTConfig(epochs=2, batch_size=1, optimizer=ADAM),
    implicit=stepagent.ImplicitConfig(
        beta=1.0, sft_coef=10.0, epochs=2, batch_size=1, optimizer=ADAM
    ),
    evaluation=stepagent.EvaluationConfig(decoding=replace(SHORT, temperature=0.0)),
)


def smaller(settings: stepagent.TrainConfig) -> stepagent.TrainConfig:
    """Whether it runs, not whether it learns: every stage once, in seconds."""
    once = stepagent.SFTConfig(epochs=1, optimizer=ADAM)
    return replace(
        settings,
        data=stepagent.DataConfig(sft=2, reflection=3, shared=2, dev=2, test=2),
        model=stepagent.TinyConfig(vocab_size=300, hidden_size=32, num_layers=1, num_heads=2),
        pretrain=stepagent.PretrainConfig(reading=once, copying=once),
        rounds=1,
    )


def arguments(description: str | None) -> tuple[Path, stepagent.TrainConfig]:
    """The run folder and the settings that the command line asks for."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the run")
    parser.add_argument("--quick", action="store_true", help="only check that everything runs")
    given = parser.parse_args()
    return given.out, smaller(SETTINGS) if given.quick else SETTINGS


def main() -> None:
    """Trains, and prints the success of novice and expert on test items."""
    out, settings = arguments(__doc__)
    stepagent.deterministic()
    results = stepagent.train(settings, out, task=HOUSEHOLD)
    print(results.summary)
    for name, method in (("novice", "sft"), ("expert", "implicit")):
        print(f"{name}: {results.mean(method):.0%} of errands done")
    print(f"policy: {results.policy_folder('implicit')}")


if __name__ == "__main__":
    main()
