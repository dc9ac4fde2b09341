"""GRPO: advantages by hand, updates against plain calls."""

import pytest
import torch

from fakes import (
    copy_of,
    demonstrations,
    gradient_norm,
    in_float64,
    plain_logprobs,
    random_policy,
    rendered,
    states_of,
)
from stepagent.algorithms.grpo import GRPOConfig, group_advantages, grpo
from stepagent.inspection import path_logprobs, rollout_tree
from stepagent.model.updates import Metrics, OptimizerConfig

FAST = OptimizerConfig(learning_rate=1e-3, warmup_share=0.0, weight_decay=0.0)
REWARDS = torch.tensor([1.0, 0.0, 0.5, 0.5], dtype=torch.float64)


def test_advantages_are_standardized_in_their_group_by_hand() -> None:
    assert group_advantages(torch.tensor([1.0, 3.0])).tolist() == [-1.0, 1.0]
    wide = group_advantages(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    torch.testing.assert_close(wide, torch.tensor([-1.0, -1.0, -1.0, 3.0]) / 3**0.5)
    # The mean of three equal numbers may differ from them in the last digit.
    assert group_advantages(torch.full((3,), 0.11)).tolist() == [0, 0, 0]


def test_the_first_update_is_the_advantage_weighted_likelihood_of_plain_calls() -> None:
    start = in_float64(random_policy(scale=4.0))
    policy, logged = copy_of(start), list[Metrics]()
    episodes = rendered(policy, [*demonstrations()[:2], *demonstrations()[40:42]])
    config = GRPOConfig(optimizer=FAST, batch_size=9)
    groups = [rollout_tree(episodes[:2]), rollout_tree(episodes[2:])]
    facts = grpo(policy, groups, REWARDS.split(2), config, seed=0, log=logged.append)
    logprobs, weights = [], []
    for episode, advantage in zip(episodes, [1.0, -1.0, 0.0, 0.0], strict=True):
        for state, action in zip(states_of(episode), episode.actions, strict=True):
            logprobs.append(plain_logprobs(start.model, state, action))
            weights.append(torch.full((len(action),), advantage, dtype=torch.float64))
    loss = -(torch.cat(logprobs) * torch.cat(weights)).mean()  # ratio 1, KL of gradient 0
    assert logged[0]["grad_norm"] == pytest.approx(gradient_norm(loss, [start.model]), rel=1e-6)
    assert facts == {
        "reward_mean": 0.5,
        "reward_std": pytest.approx(0.125**0.5),
        "mixed_groups": 0.5,
    }


def test_better_episodes_become_likelier_and_worse_ones_less_likely() -> None:
    policy = in_float64(random_policy())
    group = rollout_tree(rendered(policy, demonstrations()[:2]))
    first = int(group.is_end.int().argmax()) + 1

    def likelihoods() -> list[float]:
        (logprobs,) = path_logprobs(policy, [group])
        return [float(logprobs[:first].sum()), float(logprobs[first:].sum())]

    before = likelihoods()
    config = GRPOConfig(optimizer=FAST, epochs=3, kl_coef=0.0)
    grpo(policy, [group], [REWARDS[:2]], config, seed=0, log=lambda _: None)
    after = likelihoods()
    assert after[0] > before[0]
    assert after[1] < before[1]
