"""Step-wise DPO: by hand, against plain calls, against TRL, and what is left out of it."""

from collections.abc import Sequence
from math import log
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fakes import (
    Log,
    assert_packing_changes_nothing,
    copy_of,
    demonstrations,
    gradient_norm,
    in_float64,
    plain_logprobs,
    practised_trees,
    practised_with,
    random_policy,
    rendered,
    states_of,
    with_budget,
)
from stepagent.algorithms.dpo import DPOConfig, dpo, dpo_loss, implicit_rewards
from stepagent.inspection import StepTree, expert_path_of_step, path_logprobs, step_trees
from stepagent.model.policy import Policy
from stepagent.model.updates import Metrics, OptimizerConfig
from stepagent.types import Trajectory

OWN = [*demonstrations()[:2], *demonstrations()[40:42]]
"""Two to four steps each."""


def config(
    *,
    sft_coef: float = 0.0,
    epochs: int = 1,
    batch_size: int = 100,
) -> DPOConfig:
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_share=0.0, weight_decay=0.0)
    return DPOConfig(
        optimizer=optimizer, beta=0.3, sft_coef=sft_coef, epochs=epochs,
        batch_size=batch_size,
    )  # fmt: skip


def trees(
    policy: Policy, own: Sequence[Trajectory], actions: Sequence[Sequence[str]]
) -> list[StepTree]:
    return step_trees(rendered(policy, own), practised_with(policy, own, actions))


def agent_actions() -> list[list[str]]:
    """Two for each step of `OWN`; some are the expert's."""
    choices = ("go on", "open red box", "look under the blue box", "jump")
    count = sum(len(t.steps) for t in OWN)
    return [[choices[i % 4], choices[(i + 1) % 4]] for i in range(count)]


def pairs() -> list[tuple[Trajectory, int, str]]:
    """Trajectory, step and agent action of every pair that is to be learnt from."""
    states = [(t, step) for t in OWN for step in range(len(t.steps))]
    return [
        (t, step, action)
        for (t, step), own in zip(states, agent_actions(), strict=True)
        for action in own
        if action != t.steps[step].action
    ]


def plain_pair_logprobs(policy: Policy) -> Tensor:
    """(pairs, 2) log-probabilities of the expert's and the agent's action by plain calls."""
    rows = []
    for trajectory, step, action in pairs():
        (d,) = rendered(policy, [trajectory])
        both = d.actions[step], policy.renderer.action(action)
        rows.append([plain_logprobs(policy.model, states_of(d)[step], a).sum() for a in both])
    return torch.stack([torch.stack(row) for row in rows])


def after_three_updates(start: Policy, settings: DPOConfig) -> tuple[Policy, Metrics]:
    """A policy that has left its reference, and what is logged of the update that follows."""
    policy, logged, snapshots = copy_of(start), list[Metrics](), list[Policy]()

    def note(row: Metrics) -> None:
        logged.append(row)
        snapshots.append(copy_of(policy))

    dpo(policy, trees(policy, OWN, agent_actions()), settings, seed=0, log=note)
    return snapshots[2], logged[3]


def test_loss_by_hand() -> None:
    # chosen:   0.5 * (-1 - -2)   =  0.5        rejected: 0.5 * (-3 - -2.5) = -0.25
    # loss:     -log sigma(0.5 - -0.25) = log(1 + exp(-0.75)) = log 1.4723666 = 0.3868713
    # The other way round: -log sigma(-0.75) = 0.3868713 + 0.75
    found = dpo_loss(
        torch.tensor([-1.0, -3.0]),
        torch.tensor([-3.0, -1.0]),
        torch.tensor([-2.0, -2.5]),
        torch.tensor([-2.5, -2.0]),
        beta=0.5,
    )
    torch.testing.assert_close(found.loss, torch.tensor([0.3868713, 1.1368713]), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.chosen_rewards, torch.tensor([0.5, -0.25]))
    torch.testing.assert_close(found.rejected_rewards, torch.tensor([-0.25, 0.5]))


def test_the_first_loss_is_log_2_and_says_nothing_about_preference() -> None:
    policy, logged = in_float64(random_policy(scale=4.0)), list[Metrics]()
    dpo(policy, trees(policy, OWN, agent_actions()), config(), seed=0, log=logged.append)
    assert logged[0]["dpo_loss"] == pytest.approx(log(2), rel=1e-10)
    assert logged[0]["reward_margin"] == pytest.approx(0, abs=1e-10)
    assert logged[0]["reward_chosen"] == pytest.approx(0, abs=1e-10)


def test_loss_and_gradient_are_those_of_plain_calls_on_the_differing_pairs() -> None:
    start = in_float64(random_policy(scale=4.0))
    policy, row = after_three_updates(start, config(epochs=4, sft_coef=0.7))
    now, reference = plain_pair_logprobs(policy), plain_pair_logprobs(start).detach()
    margins = 0.3 * ((now[:, 0] - reference[:, 0]) - (now[:, 1] - reference[:, 1]))
    preference = torch.log1p(torch.exp(-margins)).mean()
    expert = torch.cat(
        [
            plain_logprobs(policy.model, state, action)
            for d in rendered(policy, OWN)
            for state, action in zip(states_of(d), d.actions, strict=True)
        ]
    )
    loss = preference - 0.7 * expert.mean()
    norm = gradient_norm(loss, [policy.model])
    assert float(margins.detach().abs().min()) > 1e-4
    expected = {
        "dpo_loss": float(preference.detach()),
        "sft_loss": -float(expert.detach().mean()),
        "loss": float(loss.detach()),
        "reward_margin": float(margins.detach().mean()),
        "reward_accuracy": float((margins > 0).double().mean()),
        "grad_norm": norm,
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-8)


def test_loss_and_gradient_are_those_of_trl(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    start = random_policy(scale=3.0)
    policy, row = after_three_updates(start, config(epochs=4))
    data = []
    for trajectory, step, action in pairs():
        history = []
        for i, s in enumerate(trajectory.steps[: step + 1]):
            text = f"{trajectory.instruction}\n\n{s.observation}" if i == 0 else s.observation
            history.append({"role": "user", "content": text})
            history.append({"role": "assistant", "content": s.action})
        data.append(
            {
                "prompt": history[:-1],
                "chosen": history[-1:],
                "rejected": [{"role": "assistant", "content": action}],
            }
        )
    trainer = trl.DPOTrainer(
        model=policy.model,
        ref_model=copy_of(start).model,
        args=trl.DPOConfig(
            output_dir=str(tmp_path),
            beta=0.3,
            per_device_train_batch_size=len(data),
            max_length=None,
            activation_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list(data),
        processing_class=policy.renderer.tokenizer,
    )
    (batch,) = trainer.get_train_dataloader()
    loss = trainer.compute_loss(trainer.model, batch)
    norm = gradient_norm(loss, [trainer.model])
    assert abs(float(loss.detach()) - log(2)) > 0.01
    assert row["dpo_loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_packing_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    start = in_float64(random_policy(scale=4.0))

    def train(token_budget: int, log: Log) -> list[torch.nn.Module]:
        policy = with_budget(copy_of(start), token_budget)
        settings = config(sft_coef=0.5, epochs=2, batch_size=3)
        dpo(policy, practised_trees(policy), settings, seed=1, log=log)
        return [policy.model]

    assert_packing_changes_nothing(train, monkeypatch)


def test_an_agent_that_acts_as_the_expert_gives_no_pairs_and_no_gradient() -> None:
    policy = in_float64(random_policy(scale=4.0))
    before = [p.detach().clone() for p in policy.model.parameters()]
    copied = [[s.action] for t in OWN for s in t.steps]
    logged = list[Metrics]()
    dpo(policy, trees(policy, OWN, copied), config(epochs=2), seed=0, log=logged.append)
    assert [row["dpo_loss"] for row in logged] == [0, 0]
    assert [row["grad_norm"] for row in logged] == [0, 0]
    torch.testing.assert_close(list(policy.model.parameters()), before, rtol=0, atol=0)


def test_the_same_text_by_other_tokens_is_no_mistake() -> None:
    policy = random_policy()
    (tree,) = trees(policy, OWN[:1], [["go on"], ["go on"]])
    assert tree.is_same.tolist() == [True, True, True, False]
    steps = practised_with(policy, OWN[:1], [["go on"], ["go on"]])
    letters = tuple(i for c in "go on" for i in policy.renderer.action(c)[:-1])
    assert letters != steps[0].agent_actions[0].token_ids[:-1]
    action = (
        steps[0]
        .agent_actions[0]
        .model_copy(update={"token_ids": (*letters, policy.renderer.end_id)})
    )
    steps[0] = steps[0].model_copy(update={"agent_actions": (action,)})
    (spelt,) = step_trees(rendered(policy, OWN[:1]), steps)
    assert spelt.is_same.tolist() == [True, True, True, False]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_every_path_is_compared_with_the_expert_of_its_own_step(num_actions: list[int]) -> None:
    is_expert, expected = list[bool](), list[int]()
    for count in num_actions:
        expected += [len(is_expert)] * (1 + count)
        is_expert += [True] + [False] * count
    assert expert_path_of_step(torch.tensor(is_expert)).tolist() == expected


def test_implicit_rewards_are_the_log_ratios_of_plain_calls() -> None:
    start = in_float64(random_policy(scale=4.0))
    policy, _ = after_three_updates(start, config(epochs=4))
    practised = trees(policy, OWN, agent_actions())
    with torch.no_grad():
        ratio = plain_pair_logprobs(policy) - plain_pair_logprobs(start)
    for token_budget in (1, 10_000):
        now, then = (
            path_logprobs(with_budget(p, token_budget), practised) for p in (policy, start)
        )
        rewards = implicit_rewards(now, then, 0.3)
        assert [len(r) for r in rewards] == [len(p.is_expert) for p in practised]
        is_expert = torch.cat([p.is_expert for p in practised])
        differs = (~torch.cat([p.is_same for p in practised])).nonzero()[:, 0]
        chosen = expert_path_of_step(is_expert)[differs]
        values = torch.cat(rewards)
        found = torch.stack([values[chosen], values[differs]], 1)
        torch.testing.assert_close(found, 0.3 * ratio, rtol=1e-8, atol=1e-10)


def test_the_experts_actions_come_to_be_preferred() -> None:
    policy, logged = random_policy(), list[Metrics]()
    practised = trees(policy, OWN, agent_actions())
    dpo(policy, practised, config(epochs=20), seed=0, log=logged.append)
    assert logged[-1]["dpo_loss"] < 0.5 < log(2)
    assert logged[-1]["reward_accuracy"] > 0.9
