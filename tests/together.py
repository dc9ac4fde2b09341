"""What `test_ranks.py` starts in several processes: learners in float64, practice, a whole run."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import set_forkserver_preload
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from fakes import (
    WORLD,
    BoxWorld,
    demonstrations,
    in_float64,
    practised_trees,
    random_policy,
    rendered,
)
from stepagent import cli
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
from stepagent.experiment.run import Run, to_json
from stepagent.inspection import inspect, path_logprobs
from stepagent.model import generation
from stepagent.model.generation import Decoding
from stepagent.model.policy import Policy
from stepagent.model.prefix_tree import Pack
from stepagent.model.updates import Metrics
from stepagent.processes import heartbeat, launched, ranks
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


def run(folder: str, *kills: str) -> None:
    """A whole run; each of the kills happens once: with `base=1` process 1 dies within base."""
    _run(Path(folder), Path(f"{folder}.killed"), kills, None)


def stored(folder: str, storage: str, *kills: str) -> None:
    """A whole run by processes that do not see each other's folders; a kill takes a folder."""
    _run(Path(f"{folder}-{ranks.rank()}"), Path(f"{folder}.killed"), kills, storage)


def _run(folder: Path, killed: Path, kills: Sequence[str], storage: str | None) -> None:
    settings = {"recipe": "boxes", "seed": 0, "protocol": {}, "config": to_json(CONFIG)}
    left = kills[len(killed.read_text().split()) if killed.exists() else 0 :]
    with open_run(folder, settings, resume=True, storage=storage) as opened:
        if left:
            unit, _, victim = left[0].partition("=")
            if ranks.rank() == int(victim):
                _die_in(opened, unit, killed, has_copy=storage is not None)
        train(CONFIG, opened, BoxWorld())


def _die_in(opened: Run, unit: str, killed: Path, *, has_copy: bool) -> None:
    """The first process dies when the unit's work is done, another when it begins."""
    whole = opened.unit

    def die() -> None:
        with open(killed, "a") as file:
            file.write(f"{unit}={ranks.rank()}\n")
        if has_copy:
            shutil.rmtree(opened.folder)
        os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def deadly(name: str) -> Iterator[Path]:
        with whole(name) as folder:
            if name == unit and not ranks.is_first():
                die()
            yield folder
            if name == unit:
                die()

    opened.unit = deadly  # type: ignore[method-assign]


def hang(folder: str) -> None:
    """The last process is stopped once, with its number in a file, while the others wait for it."""
    mark = Path(folder)
    if ranks.rank() == ranks.count() - 1 and not mark.exists():
        mark.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)
    ranks.wait()


def do(arguments: Sequence[str]) -> None:
    """One of the programs, in one of the processes."""
    what, *given = arguments
    if silence := os.environ.get("SILENCE"):
        heartbeat.SILENCE = float(silence)
    if what == "stepagent":
        Path(f"{given[0]}-{launched.number()}.pid").write_text(str(os.getpid()))
        cli.main(given[1:])
        return
    if what in ("run", "stored", "hang"):
        with ranks.joined():
            {"run": run, "stored": stored, "hang": hang}[what](*given)
        return
    random_policy(scale=4.0)  # together, transformers would save only the first process's models
    with ranks.joined():
        shares = Shares()
        programs: dict[str, Callable[[], Any]] = {
            "learners": learners,
            "practice": practice,
            "short_of_memory": short_of_memory,
            "journal": lambda: journal(f"{given[0]}.jsonl"),
        }
        found = programs[what]()
        torch.save((found, shares.some, shares.none), f"{given[0]}-{ranks.rank()}.pt")


def main() -> None:
    """`together.py torchrun|ray COUNT RESTARTS PROGRAM ...`."""
    launcher, count, restarts, *arguments = sys.argv[1:]
    if launcher == "ray":
        from stepagent.processes.ray_workers import run_with_ray

        run_with_ray(
            together.do,
            arguments,
            arguments,
            num_workers=int(count),
            address=None,
            restarts=int(restarts),
        )
        return
    # What torchrun does, but the processes begin with everything imported. torchrun's own process
    # has threads, so it is not the one to be forked.
    set_forkserver_preload(["together"])
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=int(count),
        run_id="together",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=int(restarts),
        start_method="forkserver",
    )
    try:
        elastic_launch(config, together.do)(arguments)
    except ChildFailedError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    import together  # other processes look for functions by the names of their modules

    main()
