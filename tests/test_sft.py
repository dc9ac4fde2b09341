"""SFT: the mean negative log-likelihood of action tokens, whatever shares a row."""

from math import log

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

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
from stepagent.algorithms.sft import SFTConfig, sft, sft_loss
from stepagent.model.forward import Layers
from stepagent.model.policy import Policy
from stepagent.model.updates import Metrics, OptimizerConfig

OWN = [*demonstrations()[:3], *demonstrations()[40:43]]
"""Demonstrations of one to four steps."""


def config(epochs: int = 1, batch_size: int = 8) -> SFTConfig:
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_share=0.0)
    return SFTConfig(optimizer=optimizer, epochs=epochs, batch_size=batch_size)


def weights(policy: Policy) -> list[torch.Tensor]:
    return [p.detach().clone() for p in policy.model.parameters()]


def test_loss_by_hand() -> None:
    # (log 2 + log 4 + log 8) / 3 = 6 log 2 / 3 = 2 log 2
    logprobs = torch.tensor([0.5, 0.25, 0.125]).log()
    assert float(sft_loss(logprobs, 3)) == pytest.approx(2 * log(2))
    # As two parts of one batch: log 2 / 3 + 5 log 2 / 3.
    parts = sft_loss(logprobs[:1], 3), sft_loss(logprobs[1:], 3)
    assert float(parts[0]) == pytest.approx(log(2) / 3)
    assert float(parts[0] + parts[1]) == pytest.approx(2 * log(2))


def test_first_loss_and_gradient_are_those_of_plain_calls_on_every_history() -> None:
    policy = in_float64(random_policy(scale=4.0))
    own, logged = rendered(policy, OWN), list[Metrics]()
    logprobs = torch.cat(
        [
            plain_logprobs(policy.model, state, action)
            for d in own
            for state, action in zip(states_of(d), d.actions, strict=True)
        ]
    )
    loss = -logprobs.mean()
    norm = gradient_norm(loss, [policy.model])
    sft(policy, own, config(), seed=0, log=logged.append)
    (row,) = logged
    assert row["loss"] == pytest.approx(float(loss.detach()), rel=1e-10)
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-8)


def test_packing_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    start = in_float64(random_policy(scale=4.0))

    def train(token_budget: int, log: Log) -> list[torch.nn.Module]:
        policy = with_budget(copy_of(start), token_budget)
        settings = config(epochs=2, batch_size=4)
        sft(policy, rendered(policy, OWN), settings, seed=3, log=log)
        return [policy.model]

    assert_packing_changes_nothing(train, monkeypatch)


def test_the_same_seed_gives_equal_weights_and_another_seed_another_order() -> None:
    found = []
    for seed in (1, 1, 2):
        policy, logged = random_policy(), list[Metrics]()
        sft(policy, rendered(policy, OWN), config(batch_size=1), seed=seed, log=logged.append)
        found.append((weights(policy), logged))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=0)
    assert found[0][1] == found[1][1]
    assert found[0][1][0]["loss"] != found[2][1][0]["loss"]


def test_one_trajectory_can_be_learnt_by_heart() -> None:
    policy, logged = random_policy(), list[Metrics]()
    optimizer = OptimizerConfig(learning_rate=3e-3)
    sft(
        policy,
        rendered(policy, OWN[-1:]),
        SFTConfig(optimizer=optimizer, epochs=100),
        seed=0,
        log=logged.append,
    )
    assert logged[0]["loss"] > 5 and logged[-1]["loss"] < 0.05


def test_nothing_but_log_probabilities_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = random_policy()
    own, predicted = rendered(policy, OWN), list[int]()
    plain = Layers.logits

    def logits(self: Layers, hidden: torch.Tensor) -> torch.Tensor:
        predicted.append(len(hidden))
        return plain(self, hidden)

    monkeypatch.setattr(Layers, "logits", logits)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        sft(policy, own, config(), seed=0, log=lambda _: None)
    # Entropies would exponentiate the whole vocabulary; logits are those of action tokens only.
    assert "aten::exp" not in {event.key for event in profiled.key_averages()}
    assert sum(predicted) <= sum(map(len, (action for d in own for action in d.actions)))
