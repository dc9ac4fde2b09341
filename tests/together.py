"""What `test_ranks.py` starts in several processes: learners in float64, practice, a whole run."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fakes import (
    WORLD,
    BoxWorld,
    demonstrations,
    in_float64,
    practised_trees,
    random_policy,
    rendered,
)
from stepagent.algorithms.discriminator import DiscriminatorConfig, train_discriminator
from stepagent.algorithms.dpo import DPOConfig, dpo
from stepagent.algorithms.grpo import GRPOConfig, grpo
from stepagent.algorithms.ppo import PPOConfig, ppo, read_before
from stepagent.algorithms.sft import SFTConfig, sft
from stepagent.algorithms.trajectory_dpo import TrajectoryDPOConfig, trajectory_dpo
from stepagent.algorithms.value_head import ValueHead
from stepagent.commands.episode_journal import kept
from stepagent.detours import take_detours
from stepagent.evaluation import EvaluationConfig, evaluate
from stepagent.experiment.follower import open_run
from stepagent.experiment.pipeline import train
from stepagent.experiment.run import to_json
from stepagent.inspection import inspect, path_logprobs
from stepagent.model import generation
from stepagent.model.generation import Decoding
from stepagent.model.policy import Policy
from stepagent.model.prefix_tree import Pack
from stepagent.model.updates import Metrics
from stepagent.processes import ranks
from stepagent.tasks.demonstrations import collect, demonstrate
from test_pipeline import CONFIG, FAST

ITEMS = WORLD.items("dev")[:5]
BUDGET = 128
"""Tokens in a pack, so few that each batch has several."""


class Shares:
    """Counts how often this process had a share, and how often it had none."""

    def __init__(self) -> None:
        self.some, self.none = 0, 0
        self._own = ranks.own
        ranks.own = self.own  # type: ignore[assignment]

    def own(self, costs: Sequence[float]) -> list[int]:
        found = self._own(costs)
        if found:
            self.some += 1
        else:
            self.none += 1
        return found


def small(policy: Policy) -> Policy:
    policy.layers.token_budget = BUDGET
    return policy


def learners() -> dict[str, Any]:
    """The metrics and weights of each learner after several updates."""
    found: dict[str, Any] = {}
    plan: dict[str, Any] = {"optimizer": FAST, "batch_size": 4}

    def note(name: str, learn: Callable[[Policy, Callable[[Metrics], None]], Any]) -> None:
        policy, logged = small(in_float64(random_policy(scale=4.0))), list[Metrics]()
        facts = learn(policy, logged.append)
        found[name] = logged, [p.detach() for p in policy.parameters()], facts

    policy = small(in_float64(random_policy(scale=4.0)))
    trees = practised_trees(policy, 4)
    episodes = [*demonstrations()[:4], *demonstrations()[40:44]]
    note(
        "sft",
        lambda p, log: sft(p, rendered(p, episodes), SFTConfig(epochs=2, **plan), seed=1, log=log),
    )
    note("dpo", lambda p, log: dpo(p, trees, DPOConfig(**plan), seed=1, log=log))
    agent = path_logprobs(policy, trees)
    judge = DiscriminatorConfig(**plan)
    note(
        "discriminator",
        lambda p, log: train_discriminator(p, trees, agent, judge, epochs=2, seed=1, log=log),
    )

    def reward(p: Policy, log: Callable[[Metrics], None]) -> Any:
        head = ValueHead(p.layers)
        before = read_before(p, head, trees)
        facts = ppo(p, head, trees, agent, before, PPOConfig(**plan), seed=1, log=log)
        return facts, [w.detach() for w in head.parameters()]

    note("ppo", reward)
    scores = [torch.linspace(0, 1, int(t.is_end.sum()), dtype=torch.float64) for t in trees]
    note(
        "grpo", lambda p, log: grpo(p, trees, scores, GRPOConfig(epochs=2, **plan), seed=1, log=log)
    )
    pairs = TrajectoryDPOConfig(epochs=2, **plan)
    note("trajectory dpo", lambda p, log: trajectory_dpo(p, trees, pairs, seed=1, log=log))
    return found


def practice() -> dict[str, Any]:
    """What a policy does and reads; equal to the last bit however many processes share it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "DECODED_TOGETHER", 8)  # so that there are groups to share
        return _practice()


def _practice() -> dict[str, Any]:
    policy = small(random_policy(scale=4.0))
    own = rendered(policy, [*demonstrations()[:6], *demonstrations()[40:46]])
    decoding = Decoding(max_new_tokens=8)
    played = evaluate(policy, WORLD, ITEMS, EvaluationConfig(decoding=decoding), seed=0)
    detours = take_detours(policy, WORLD, own, decoding, in_a_row=2, seed=0)
    return {
        "inspected": inspect(policy, own, decoding, seed=0, num_actions=2),
        "read": path_logprobs(policy, practised_trees(policy, 6)),
        "played": played.episodes,
        "collected": collect(BoxWorld(unsolved=ITEMS[:1]), ITEMS),
        "detours": ([d.trajectory for d in detours.demonstrations], detours.taken),
    }


def short_of_memory() -> dict[str, Any]:
    """Training in which one process runs out of memory once."""
    policy, logged = small(in_float64(random_policy(scale=4.0))), list[Metrics]()
    forward, left = policy.layers.hidden, [1] if ranks.rank() == ranks.count() - 1 else []

    def hidden(packed: Pack) -> torch.Tensor:
        if left:
            left.pop()
            raise torch.OutOfMemoryError
        return forward(packed)

    policy.layers.hidden = hidden  # type: ignore[method-assign]
    plan = SFTConfig(epochs=2, optimizer=FAST, batch_size=4)
    sft(policy, rendered(policy, demonstrations()[:4]), plan, seed=1, log=logged.append)
    return {"budget": policy.layers.token_budget, "logged": logged, "left": left}


def journal(out: str) -> list[Any]:
    """The expert's episodes through a journal."""
    play = partial(demonstrate, BoxWorld(unsolved=ITEMS[:1]), num_parallel=1)
    return kept(Path(out), ITEMS, lambda _: {"played": {"by": "test"}}, play, "Test")


def run(folder: str, unit: str = "", victim: str = "") -> None:
    """A whole run; the victim kills itself within the unit, unless the folder says it did."""
    world, killed = BoxWorld(), Path(f"{folder}.killed")
    settings = {"recipe": "boxes", "seed": 0, "protocol": {}, "config": to_json(CONFIG)}
    with open_run(Path(folder), settings, resume=True) as opened:
        if unit and not killed.exists() and ranks.rank() == int(victim):
            _kill_in(opened, unit, killed)
        train(CONFIG, opened, world)


def _kill_in(opened: Any, unit: str, killed: Path) -> None:
    done = opened.unit

    def deadly(name: str) -> Any:
        if name == unit:

            def die(policy: Policy, folder: Path) -> None:
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)

            Policy.save = die  # type: ignore[assignment, method-assign]
        return done(name)

    opened.unit = deadly


if __name__ == "__main__":
    random_policy(scale=4.0)  # together, transformers would save only the first process's models
    with ranks.joined():
        what, *given = sys.argv[1:]
        if what == "run":
            run(*given)
        else:
            shares = Shares()
            programs: dict[str, Callable[[], Any]] = {
                "learners": learners,
                "practice": practice,
                "short_of_memory": short_of_memory,
                "journal": lambda: journal(f"{given[0]}.jsonl"),
            }
            found = programs[what]()
            torch.save((found, shares.some, shares.none), f"{given[0]}-{ranks.rank()}.pt")
