"""Inspection against `generate` of transformers: an action in every state of expert trajectories.

The model has cloned other trajectories before, as it has when reflection begins.
`generate` gets all states as left-padded batches, those of similar length together, at its fastest
batch size. Both decode greedily, so the actions must be equal.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from stepagent.inspection import inspect
from stepagent.model.generation import Decoding
from stepagent.model.packs import read_paths
from stepagent.model.policy import Policy
from stepagent.model.prefix_tree import ROOT, PrefixTree
from stepagent.types import Trajectory

from .material import SEED, Plain, Setup, open_plain, open_policy
from .measuring import TIE_TOLERANCE, Row, Unequal, best_of, in_turn, ratio, seconds

TITLE = "Practice beside generate: an action in every state of one trajectory or of several"
BATCH_SIZES = (1, 2, 4, 8)
TOGETHER = 8
"""Trajectories that are inspected together."""
GREEDY = Decoding(max_new_tokens=24, temperature=0)

Action = tuple[int, ...]


@torch.inference_mode()
def generate(
    model: Plain, states: Sequence[Sequence[int]], batch_size: int, end_id: int
) -> list[Action]:
    """The greedy action after each state, with its end token."""
    order = sorted(range(len(states)), key=lambda i: len(states[i]))
    actions: dict[int, Action] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        width = max(len(states[i]) for i in batch)
        padded = [[end_id] * (width - len(states[i])) + list(states[i]) for i in batch]
        seen = [[0] * (width - len(states[i])) + [1] * len(states[i]) for i in batch]
        written: list[list[int]] = model.generate(  # type: ignore[operator]
            torch.tensor(padded, device=model.device),
            attention_mask=torch.tensor(seen, device=model.device),
            max_new_tokens=GREEDY.max_new_tokens,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=end_id,
            pad_token_id=end_id,
        )[:, width:].tolist()
        for i, ids in zip(batch, written, strict=True):
            length = ids.index(end_id) + 1 if end_id in ids else len(ids)
            actions[i] = tuple(ids[:length])
    return [actions[i] for i in range(len(states))]


def check_actions(
    policy: Policy,
    states: Sequence[Sequence[int]],
    ours: Sequence[Action],
    theirs: Sequence[Action],
    tolerance: float,
) -> int:
    """How many actions differ, by rounding alone; raises `Unequal` for any other difference.

    Where two actions part, the policy must give their tokens log-probabilities within the
    tolerance.
    """
    ties = 0
    for state, mine, other in zip(states, ours, theirs, strict=True):
        if mine == other:
            continue
        ties += 1
        together = zip(mine, other, strict=False)
        place = next((i for i, (a, b) in enumerate(together) if a != b), None)
        if place is None:
            raise Unequal(f"one action is the beginning of the other: {mine}, {other}")
        tree = PrefixTree()
        last = tree.add(ROOT, [*state, *mine[:place]])[-1]
        for action in (mine, other):
            tree.add_path(last, action[place : place + 1])
        (logprobs,) = read_paths(policy.layers, [tree], policy.path_logprobs)
        if not abs(float(logprobs[0] - logprobs[1])) <= tolerance:
            raise Unequal(f"actions part at {mine[place]} and {other[place]}: {logprobs.tolist()}")
    return ties


def answer(setup: Setup) -> Iterator[Row]:
    """A row for each model and data: small in float32; real in the last precision, once in all."""
    for name, model in setup.models.items():
        for trajectories in ([setup.short], several(setup.short), [setup.long]):
            batch_size = None
            own = setup.precisions[:1] if model == setup.small else setup.precisions[::-1]
            for precision in own:
                source, is_short = setup.agents[model], trajectories == [setup.short]
                repeats = setup.repeats if is_short or model == setup.small else 1
                row = compare(source, trajectories, precision, repeats, batch_size)
                batch_size = row["batch"]
                yield {"model": name, "trajectories": len(trajectories)} | row
                if not is_short:
                    break


def several(trajectory: Trajectory) -> list[Trajectory]:
    """Trajectories of one length that share no more than the words before the instruction."""
    return [
        trajectory.model_copy(
            update={"id": f"{trajectory.id}-{n}", "instruction": f"{n}. {trajectory.instruction}"}
        )
        for n in range(TOGETHER)
    ]


def compare(
    source: Path,
    trajectories: Sequence[Trajectory],
    precision: str,
    repeats: int,
    batch_size: int | None,
) -> dict[str, Any]:
    """Both sides in turn; without a batch size the fastest one on some states is taken."""
    policy = open_policy(source, precision)
    model = open_plain(source, None, precision)
    rendered = [policy.render(trajectory) for trajectory in trajectories]
    states, end_id = [state for r in rendered for state in r.states], policy.renderer.end_id

    acted: dict[str, list[Action]] = {}

    def ours() -> None:
        found = inspect(policy, rendered, GREEDY, seed=SEED)
        acted["ours"] = [step.agent_actions[0].token_ids for step in found]

    def theirs() -> None:
        acted["generate"] = generate(model, states, best, end_id)

    some = states[:: -(-len(states) // max(BATCH_SIZES))]
    best = batch_size or best_of(
        BATCH_SIZES, lambda size: seconds(lambda: generate(model, some, size, end_id))
    )
    ours()  # the first call allocates
    found = in_turn({"ours": lambda: seconds(ours), "generate": lambda: seconds(theirs)}, repeats)
    actions, tolerance = acted["ours"], TIE_TOLERANCE[precision]
    ties = check_actions(policy, states, actions, acted["generate"], tolerance)
    return {
        "states": len(states),
        "precision": precision,
        "sampled": sum(map(len, actions)),
        "seconds": round(median(found["ours"]), 3),
        "generate": round(median(found["generate"]), 3),
        "times": ratio(found["ours"], found["generate"]),
        "batch": best,
        "ties": ties,
        "all": found,
    }
