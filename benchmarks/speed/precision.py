"""bfloat16 against float32, where the processor has units for it: training and practice."""

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median

from stepagent.inspection import inspect
from stepagent.model.policy import Policy

from .generate import GREEDY, check_actions
from .material import SEED, Setup, open_policy
from .measuring import LOSS_TOLERANCE, TIE_TOLERANCE, Row, check_close, in_turn, ratio, seconds
from .training import Training, train

TITLE = "bfloat16 beside float32, the same run"


def answer(setup: Setup) -> Iterator[Row]:
    """A row for LoRA, for the whole model and for practice; none without units."""
    if "bfloat16" not in setup.precisions:
        return
    for kind, adapter in (("LoRA", setup.adapters[setup.real]), ("whole model", None)):
        full, half = (_training(setup, adapter, p) for p in ("float32", "bfloat16"))
        check_close(kind, full()[0], half()[0], LOSS_TOLERANCE["bfloat16"])
        yield _row(f"DPO, {kind}", setup, lambda: full()[1], lambda: half()[1])  # noqa: B023
    yield _practice(setup)


def _practice(setup: Setup) -> Row:
    full, half = (open_policy(setup.real, p) for p in ("float32", "bfloat16"))
    rendered = full.render(setup.short)

    def act(policy: Policy) -> list[tuple[int, ...]]:
        found = inspect(policy, [rendered], GREEDY, seed=SEED)
        return [step.agent_actions[0].token_ids for step in found]

    tolerance = TIE_TOLERANCE["bfloat16"]
    check_actions(full, list(rendered.states), act(full), act(half), tolerance)
    return _row(
        "practice", setup, lambda: seconds(lambda: act(full)), lambda: seconds(lambda: act(half))
    )


def _training(
    setup: Setup, adapter: Path | None, precision: str
) -> Callable[[], tuple[list[float], float]]:
    """A run gives the losses and the seconds of an update after the first."""
    training = Training(
        model=setup.real, adapter=adapter, trajectory=setup.short, loss="dpo", precision=precision
    )
    policy = open_policy(adapter or setup.real, precision)

    def run() -> tuple[list[float], float]:
        losses: list[float] = []
        ends: list[float] = []

        def log(metrics: dict[str, float]) -> None:
            losses.append(metrics["loss"])
            ends.append(time.perf_counter())

        train(policy, training, log)
        return losses, median(b - a for a, b in pairwise(ends))

    return run


def _row(what: str, setup: Setup, full: Callable[[], float], half: Callable[[], float]) -> Row:
    found = in_turn({"float32": full, "bfloat16": half}, setup.repeats)
    return {
        "what": what,
        "float32": round(median(found["float32"]), 3),
        "bfloat16": round(median(found["bfloat16"]), 3),
        "times": ratio(found["bfloat16"], found["float32"]),
        "all": found,
    }
