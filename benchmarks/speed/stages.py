"""Each stage as a share of the machine's peak, and of a plain call of the same model.

The peak is that of a large matrix product in the same precision; operations are those of the
weights, without attention. The plain call is one causal sequence of as many tokens, with logits at
as many positions, by transformers (and PEFT), all weights in the precision. Training is compared
with a forward and a backward call, up to the optimizer's step and as a whole; other stages with a
forward call.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import optimizer as hooks

from stepagent.algorithms.discriminator import DiscriminatorConfig, train_discriminator
from stepagent.algorithms.dpo import DPOConfig, dpo
from stepagent.algorithms.ppo import PPOConfig, ppo, read_before
from stepagent.algorithms.sft import SFTConfig, sft
from stepagent.algorithms.value_head import ValueHead
from stepagent.inspection import inspect, path_logprobs, step_tree
from stepagent.model.policy import Policy
from stepagent.model.prefix_tree import PrefixTree
from stepagent.model.updates import Metrics
from stepagent.types import Trajectory

from .generate import GREEDY
from .material import SEED, Plain, Setup, open_plain, open_policy, practised_tree
from .measuring import DTYPES, Row, check_close, matmul_peak, seconds, synchronize
from .training import OPTIMIZER

TITLE = (
    "Each stage beside the matrix-product peak and a plain call on as many tokens (1 is as fast)"
)
UPDATES = 3
READING_TOLERANCE = {"float32": 1e-2, "bfloat16": 1.0}
"""Largest difference of the log-probability of a whole action (nats)."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of training, and what it costs at least."""

    tokens: int
    """Tokens that it has to forward."""
    positions: int
    """Those of them whose logits it needs."""
    trains: bool
    run: Callable[[], tuple[list[float], list[float]]]
    """Seconds of each repetition, up to the optimizer's step and with it."""


def plain_call(model: Plain, tokens: int, positions: int, trains: bool) -> None:
    """Forwards one sequence; with `trains` also its gradient, which is dropped."""
    ids = torch.arange(tokens, device=model.device)[None] % 1000 + 100
    with torch.set_grad_enabled(trains):
        logits = model(input_ids=ids, logits_to_keep=positions, use_cache=False).logits[0]
        if trains:
            loss = F.cross_entropy(logits.float(), ids[0, -positions:])
            loss.backward()  # type: ignore[no-untyped-call]
            model.zero_grad(set_to_none=True)


def updates_of(
    train: Callable[[Callable[[Metrics], None]], object],
) -> tuple[list[float], list[float]]:
    """Seconds of each update after the first, up to the optimizer's step and as a whole."""
    stops: list[float] = []
    ends: list[float] = []

    def note(times: list[float]) -> None:
        synchronize()
        times.append(time.perf_counter())

    hook = hooks.register_optimizer_step_pre_hook(lambda *_: note(stops))
    try:
        train(lambda _: note(ends))
    finally:
        hook.remove()
    until = [stop - start for start, stop in zip(ends, stops[1:], strict=False)]
    whole = [end - start for start, end in pairwise(ends)]
    return until, whole


def stages(policy: Policy, trajectory: Trajectory) -> dict[str, Stage]:
    """All stages on one trajectory; each run goes on from where training is."""
    rendered = policy.render(trajectory)
    tree = practised_tree(policy, trajectory)
    expert = step_tree(rendered).tree
    steps = len(rendered.actions)
    agent = path_logprobs(policy, [tree])
    found = policy.copy("discriminator")
    one_token = type(GREEDY)(max_new_tokens=1, temperature=0)
    prefill = rendered.num_tokens - len(rendered.actions[-1])
    sampled = sum(
        len(step.agent_actions[0].token_ids)
        for step in inspect(policy, [rendered], GREEDY, seed=SEED)
    )

    def once(run: Callable[[], object]) -> Callable[[], tuple[list[float], list[float]]]:
        def timed() -> tuple[list[float], list[float]]:
            taken = seconds(run)
            return [taken], [taken]

        return timed

    def decode() -> tuple[list[float], list[float]]:
        whole = seconds(lambda: inspect(policy, [rendered], GREEDY, seed=SEED))
        taken = whole - seconds(lambda: inspect(policy, [rendered], one_token, seed=SEED))
        return [taken], [taken]

    plan: dict[str, Any] = {"optimizer": OPTIMIZER, "epochs": UPDATES, "batch_size": 1}

    def clone(log: Callable[[Metrics], None]) -> None:
        sft(policy, [rendered], SFTConfig(**plan), seed=SEED, log=log)

    def prefer(log: Callable[[Metrics], None]) -> None:
        dpo(policy, [tree], DPOConfig(**plan), seed=SEED, log=log)

    def tell_apart(log: Callable[[Metrics], None]) -> None:
        config = DiscriminatorConfig(optimizer=OPTIMIZER, batch_size=1)
        train_discriminator(found, [tree], agent, config, epochs=UPDATES, seed=SEED, log=log)

    def reward(log: Callable[[Metrics], None]) -> None:
        head = ValueHead(policy.layers)
        before = read_before(policy, head, [tree])
        ppo(policy, head, [tree], agent, before, PPOConfig(**plan), seed=SEED, log=log)

    def trained(of: PrefixTree, train: Callable[[Callable[[Metrics], None]], None]) -> Stage:
        return Stage(
            tokens=len(of), positions=_positions(of), trains=True, run=lambda: updates_of(train)
        )

    return {
        "practice, prefill": Stage(
            tokens=prefill,
            positions=steps,
            trains=False,
            run=once(lambda: inspect(policy, [rendered], one_token, seed=SEED)),
        ),
        "practice, decoding": Stage(
            tokens=sampled - steps, positions=sampled - steps, trains=False, run=decode
        ),
        "reading": Stage(
            tokens=len(tree.tree),
            positions=_positions(tree.tree),
            trains=False,
            run=once(lambda: path_logprobs(policy, [tree])),
        ),
        "SFT": trained(expert, clone),
        "DPO": trained(tree.tree, prefer),
        "discriminator": trained(tree.tree, tell_apart),
        "PPO": trained(tree.tree, reward),
    }


def _positions(tree: PrefixTree) -> int:
    """How many tokens of the tree predict a token of a path."""
    return len({tree.parents[node] for path in tree.paths for node in path})


def check_reading(policy: Policy, plain: Plain, trajectory: Trajectory, precision: str) -> float:
    """Compares the log-probabilities of the last step's actions with plain calls."""
    tree = practised_tree(policy, trajectory)
    (ours,) = path_logprobs(policy, [tree])
    theirs = []
    for path in tree.tree.paths[-2:]:
        ids = [tree.tree.tokens[node] for node in tree.tree.ancestors(path[-1])]
        row = torch.tensor([ids], device=plain.device)
        with torch.inference_mode():
            logits = plain(input_ids=row, logits_to_keep=len(path) + 1).logits[0, :-1]
        chosen = torch.log_softmax(logits.float(), -1).gather(1, row[0, -len(path) :, None])
        theirs.append(float(chosen.sum()))
    return check_close("reading", ours[-2:].tolist(), theirs, READING_TOLERANCE[precision])


def operations(model: Plain, stage: Stage, *, frozen: bool) -> float:
    """Operations of the products with weights: 2 for each weight and token, each way."""
    head = cast(nn.Linear, model.get_output_embeddings()).weight.numel()
    tied = model.config.tie_word_embeddings
    body = sum(p.numel() for p in model.parameters()) - head * (1 if tied else 2)
    # A backward pass is two products, or one where the weight is frozen.
    passes = (2 if frozen else 3) if stage.trains else 1
    return float(2 * passes * (body * stage.tokens + head * stage.positions))


def answer(setup: Setup, only: Sequence[str] = ()) -> Iterator[Row]:
    """A row for each kind of training and stage of the real model.

    In the slower precision only whole-model SFT and DPO are timed.
    """
    for precision in reversed(setup.precisions):
        for kind, adapter in (("LoRA", setup.adapters[setup.real]), ("whole", None)):
            policy = open_policy(adapter or setup.real, precision)
            plain = open_plain(setup.real, adapter, precision)
            check_reading(policy, plain, setup.short, precision)
            peak = matmul_peak(DTYPES[precision], policy.model.device)
            for name, stage in stages(policy, setup.short).items():
                if kind == "whole" and not stage.trains:
                    continue  # the same model as with an adapter, almost
                if only and name not in only:
                    continue
                is_slow = precision != setup.precisions[-1]
                if is_slow and (kind == "LoRA" or name not in ("SFT", "DPO")):
                    continue
                yield {"precision": precision, "trained": kind, "stage": name} | measured(
                    stage, plain, setup.repeats, peak, frozen=adapter is not None
                )


def measured(stage: Stage, plain: Plain, repeats: int, peak: float, *, frozen: bool) -> Row:
    """A stage and plain calls in turn."""

    def call() -> None:
        plain_call(plain, stage.tokens, stage.positions, stage.trains)

    call()  # the first calls allocate
    if not stage.trains:  # else the first update is not counted
        stage.run()
    until: list[float] = []
    whole: list[float] = []
    calls: list[float] = []
    for _ in range(repeats):
        some_until, some_whole = stage.run()
        until += some_until
        whole += some_whole
        calls.append(seconds(call))
    work = operations(plain, stage, frozen=frozen)
    return {
        "tokens": stage.tokens,
        "tokens/s": round(stage.tokens / median(whole)),
        "of peak": round(work / median(whole) / peak, 3),
        "plain's": round(work / median(calls) / peak, 3),
        "of plain": round(median(calls) / median(until), 2),
        "with optimizer": round(median(calls) / median(whole), 2) if stage.trains else None,
        "all": {"until": until, "whole": whole, "plain": calls, "peak": peak},
    }
