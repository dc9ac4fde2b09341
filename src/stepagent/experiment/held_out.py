"""How close the rounds of a run without an environment are to the expert, on held-out steps.

Rounds are chosen by agreement: the share of held-out expert steps in which the policy's greedy
action is the expert's. The mean log-probability of the expert's actions is shown beside it. It is a
proper scoring rule, but not what the agent acts by: DPO and PPO take probability from actions that
the expert did not take and may take some from the expert's as well, so actions improve while it
falls. In benchmarks/results/learning.jsonl, over the rounds of sft_more, implicit, inverse and
step_dpo, agreement ranks 81 of 128 pairs of rounds of one method as their score on dev does, and
log-probability 59 of 137. Neither ranks different methods by their score.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from stepagent.inspection import inspect, path_logprobs, step_tree
from stepagent.model.generation import Decoding
from stepagent.model.policy import Policy
from stepagent.rendering.actions import same_action
from stepagent.rendering.renderer import RenderedTrajectory
from stepagent.statistics import Interval, clustered_proportion, ratio_interval


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A policy beside the expert in the steps of one held-out trajectory."""

    id: str
    steps: int
    agreed: int
    """Steps whose greedy action is the expert's."""
    logprob: float
    """Log-probability of the expert's actions, summed over the steps, in nats."""


def compare_with_expert(
    policy: Policy, held_out: Sequence[RenderedTrajectory], *, max_new_tokens: int
) -> list[Compared]:
    """One entry for each held-out trajectory, in their order."""
    greedy = Decoding(max_new_tokens=max_new_tokens, temperature=0.0)
    agreed = dict.fromkeys((h.trajectory.id for h in held_out), 0)
    for step in inspect(policy, held_out, greedy, seed=0):
        agreed[step.trajectory_id] += same_action(step.agent_actions[0].text, step.expert_action)
    logprobs = path_logprobs(policy, [step_tree(h) for h in held_out])
    return [
        Compared(
            id=h.trajectory.id,
            steps=len(h.actions),
            agreed=agreed[h.trajectory.id],
            logprob=float(own.sum()),
        )
        for h, own in zip(held_out, logprobs, strict=True)
    ]


def agreement(compared: Sequence[Compared]) -> Interval:
    """Share of the steps with the expert's action, 0 to 1, with an interval over trajectories."""
    return clustered_proportion([c.agreed for c in compared], [c.steps for c in compared])


def expert_logprob(compared: Sequence[Compared]) -> Interval:
    """Mean log-probability of an expert action, in nats, with an interval over trajectories."""
    found = ratio_interval([c.logprob for c in compared], [c.steps for c in compared])
    return found if found.high is None else replace(found, high=min(found.high, 0.0))


def agreement_gain(mine: Sequence[Compared], theirs: Sequence[Compared]) -> Interval:
    """My agreement minus theirs, -1 to 1; the interval is paired by trajectory."""
    other = {c.id: c for c in theirs}
    pairs = [(c, other[c.id]) for c in mine if c.id in other]
    gains = [own.agreed - against.agreed for own, against in pairs]
    return ratio_interval(gains, [own.steps for own, _ in pairs])


def to_rows(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """As JSON values."""
    return [asdict(c) for c in compared]


def from_rows(rows: Sequence[dict[str, Any]]) -> list[Compared]:
    """What `to_rows` made."""
    return [Compared(**row) for row in rows]
