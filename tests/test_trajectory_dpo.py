"""DPO on whole episodes: against plain calls."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from fakes import (
    Log,
    assert_packing_changes_nothing,
    copy_of,
    demonstrations,
    gradient_norm,
    in_float64,
    plain_logprobs,
    random_policy,
    rendered,
    states_of,
    with_budget,
)
from stepagent.algorithms.trajectory_dpo import TrajectoryDPOConfig, trajectory_dpo
from stepagent.inspection import StepTree, rollout_tree
from stepagent.model.policy import Policy
from stepagent.model.updates import Metrics, OptimizerConfig
from stepagent.rendering.renderer import RenderedTrajectory

FAST = OptimizerConfig(learning_rate=1e-3, warmup_share=0.0, weight_decay=0.0)


def episodes(policy: Policy) -> list[tuple[RenderedTrajectory, RenderedTrajectory]]:
    """Pairs of a long and a short episode, and one of equals."""
    found = rendered(policy, [*demonstrations()[:2], *demonstrations()[40:42]])
    return [(found[2], found[0]), (found[1], found[3]), (found[0], found[0])]


def trees(policy: Policy) -> list[StepTree]:
    return [rollout_tree([replace(agent)], expert) for expert, agent in episodes(policy)]


def plain(policy: Policy, episode: RenderedTrajectory) -> torch.Tensor:
    """(tokens,) of all actions, each by one call on its whole history."""
    pairs = zip(states_of(episode), episode.actions, strict=True)
    return torch.cat([plain_logprobs(policy.model, state, action) for state, action in pairs])


def test_loss_and_gradient_are_those_of_plain_calls() -> None:
    start = in_float64(random_policy(scale=4.0))
    policy, logged, snapshots = copy_of(start), list[Metrics](), list[Policy]()

    def note(row: Metrics) -> None:
        logged.append(row)
        snapshots.append(copy_of(policy))

    config = TrajectoryDPOConfig(optimizer=FAST, beta=0.3, sft_coef=0.7, epochs=2, batch_size=9)
    trajectory_dpo(policy, trees(policy), config, seed=0, log=note)
    now, margins, expert = snapshots[0], [], []
    for chosen, rejected in episodes(start):
        with torch.no_grad():
            reference = plain(start, chosen).sum() - plain(start, rejected).sum()
        expert.append(plain(now, chosen))
        margins.append(0.3 * (expert[-1].sum() - plain(now, rejected).sum() - reference))
    preference = -F.logsigmoid(torch.stack(margins)).mean()
    anchor = -torch.cat(expert).mean()
    loss = preference + 0.7 * anchor
    expected = {"loss": loss, "dpo_loss": preference, "sft_loss": anchor}
    numbers = {name: float(value.detach()) for name, value in expected.items()}
    numbers["grad_norm"] = gradient_norm(loss, [now.model])
    assert {name: logged[1][name] for name in numbers} == pytest.approx(numbers, rel=1e-6)
    assert logged[0]["dpo_loss"] == pytest.approx(0.6931471805599453)


def test_the_chosen_episode_becomes_the_likelier_one() -> None:
    policy, logged = in_float64(random_policy()), list[Metrics]()
    config = TrajectoryDPOConfig(optimizer=FAST, epochs=10)
    trajectory_dpo(policy, trees(policy)[:2], config, seed=0, log=logged.append)
    assert logged[-1]["reward_accuracy"] == 1
    assert logged[-1]["dpo_loss"] < logged[0]["dpo_loss"] / 2


def test_packing_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    start = in_float64(random_policy(scale=4.0))

    def train(token_budget: int, log: Log) -> list[torch.nn.Module]:
        policy = with_budget(copy_of(start), token_budget)
        config = TrajectoryDPOConfig(optimizer=FAST, sft_coef=0.5, epochs=3, batch_size=2)
        # Equal episodes would have a margin of nothing but rounding errors, on either side of 0.
        trajectory_dpo(policy, trees(policy)[:2], config, seed=4, log=log)
        return [policy.model]

    assert_packing_changes_nothing(train, monkeypatch)
