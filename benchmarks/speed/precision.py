"""bfloat16 against float32, where the processor has units for it: training and practice."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

from stepagent.inspection import inspect, path_logprobs
from stepagent.model.policy import Policy

from .generate import GREEDY, check_actions
from .material import SEED, Setup, open_policy, practised_tree
from .measuring import TIE_TOLERANCE, Row, check_close, in_turn, ratio, seconds
from .stages import READING_TOLERANCE, updates_of
from .training import Training, train

TITLE = "bfloat16 beside float32, the same run"


def answer(setup: Setup) -> Iterator[Row]:
    """A row for LoRA, for the whole model and for practice; none without units."""
    if "bfloat16" not in setup.precisions:
        return
    for kind, adapter in (("LoRA", setup.adapters[setup.real]), ("whole model", None)):
        policies = [open_policy(adapter or setup.real, p) for p in ("float32", "bfloat16")]
        trees = [practised_tree(policy, setup.short) for policy in policies]
        read = [
            path_logprobs(p, [tree])[0].tolist() for p, tree in zip(policies, trees, strict=True)
        ]
        check_close(kind, read[0], read[1], READING_TOLERANCE["bfloat16"])
        full, half = (partial(_update, setup, adapter, policy) for policy in policies)
        yield _row(f"DPO, {kind}", setup, full, half)
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


def _update(setup: Setup, adapter: Path | None, policy: Policy) -> float:
    """Seconds of an update after the first."""
    training = Training(
        model=setup.real,
        adapter=adapter,
        trajectory=setup.short,
        loss="dpo",
        precision="bfloat16" if policy.layers.is_half else "float32",
    )
    return median(updates_of(partial(train, policy, training))[1])


def _row(what: str, setup: Setup, full: Callable[[], float], half: Callable[[], float]) -> Row:
    found = in_turn({"float32": full, "bfloat16": half}, setup.repeats)
    return {
        "what": what,
        "float32": round(median(found["float32"]), 3),
        "bfloat16": round(median(found["bfloat16"]), 3),
        "times": ratio(found["bfloat16"], found["float32"]),
        "all": found,
    }
