"""PPO on step rewards: by hand, against stable-baselines3 and against plain calls."""

from math import log
from typing import Literal

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
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
from stepagent.algorithms.ppo import (
    PPOConfig,
    ValueHead,
    explained_variance,
    gae,
    ppo,
    ppo_loss,
    read_before,
)
from stepagent.inspection import StepTree, step_trees
from stepagent.model.policy import Policy
from stepagent.model.prefix_tree import Pack, pack
from stepagent.model.reading import Reading
from stepagent.model.updates import Metrics, OptimizerConfig

OWN = [*demonstrations()[:2], *demonstrations()[40:42]]
ACTIONS = [["jump", "open the red box"] for t in OWN for _ in t.steps]


def config(learning_rate: float = 1e-3, **changes: float | str) -> PPOConfig:
    optimizer = OptimizerConfig(learning_rate=learning_rate, warmup_share=0.0, weight_decay=0.0)
    defaults: dict[str, float | str] = {"epochs": 1, "batch_size": 100, "sft_coef": 0.0}
    return PPOConfig(optimizer=optimizer, **(defaults | changes))  # type: ignore[arg-type]


def ppo_round(
    policy: Policy,
    value_head: ValueHead,
    practised: list[StepTree],
    own: list[Tensor],
    settings: PPOConfig,
    *,
    seed: int,
    log: Log,
) -> Metrics:
    before = read_before(policy, value_head, practised)
    return ppo(policy, value_head, practised, own, before, settings, seed=seed, log=log)


def trees(policy: Policy) -> list[StepTree]:
    return step_trees(rendered(policy, OWN), practised_with(policy, OWN, ACTIONS))


def rewards(practised: list[StepTree]) -> list[Tensor]:
    """Another reward for each path."""
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randn(len(p.is_expert), generator=generator, dtype=torch.float64) for p in practised
    ]


def head(policy: Policy) -> ValueHead:
    """A value head that is not zero."""
    found = ValueHead(policy.layers)
    with torch.no_grad():
        found.weight.copy_(torch.linspace(-0.2, 0.2, policy.layers.width)[None])
        found.bias.fill_(0.1)
    return found


def categorical_entropy(logits: Tensor) -> Tensor:
    found: Tensor = torch.distributions.Categorical(logits=logits).entropy()  # type: ignore[no-untyped-call]
    return found


def test_loss_by_hand() -> None:
    # ratio 1.5, A = +1: min(1.5, 1.2)   -> loss -1.2, no gradient
    # ratio 1.5, A = -1: min(-1.5, -1.2) -> loss +1.5
    # ratio 0.5, A = +1: min(0.5, 0.8)   -> loss -0.5
    # ratio 0.5, A = -1: min(-0.5, -0.8) -> loss +0.8, no gradient
    # ratio 1.1, A = +2:                 -> loss -2.2
    # d loss / d log ratio = -ratio * A where it is not cut: 0, 1.5, -0.5, 0, -2.2
    # KL: 0.5 - log 1.5 = 0.0945349; -0.5 - log 0.5 = 0.1931472; 0.1 - log 1.1 = 0.0046898
    ratios = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1])
    old = torch.full((5,), -2.0)
    now = (old + ratios.log()).requires_grad_()
    found = ppo_loss(now, old, torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0]), clip_range=0.2)
    torch.testing.assert_close(found.loss.detach(), torch.tensor([-1.2, 1.5, -0.5, 0.8, -2.2]))
    (gradient,) = torch.autograd.grad(found.loss.sum(), now)
    torch.testing.assert_close(gradient, torch.tensor([0.0, 1.5, -0.5, 0.0, -2.2]))
    kl = torch.tensor([0.0945349, 0.0945349, 0.1931472, 0.1931472, 0.0046898])
    torch.testing.assert_close(found.approx_kl, kl, rtol=0, atol=1e-6)
    assert found.clipped.tolist() == [True, True, True, True, False]


def test_advantages_by_hand() -> None:
    # lambda 0.8 of the following advantage. An episode of one step, then of two:
    # t=2: 2 - 0.1                                = 1.9
    # t=1: 0 + 0.1 - 0.2 + 0.8 * 1.9              = 1.42
    # t=0: 1 - 0.5, the next step is another one  = 0.5
    values, ends = torch.tensor([0.5, 0.2, 0.1]), torch.tensor([True, False, True])
    found = gae(torch.tensor([1.0, 0.0, 2.0]), values, ends, gae_lambda=0.8)
    torch.testing.assert_close(found, torch.tensor([0.5, 1.42, 1.9]))


def test_advantage_of_a_practised_step_is_its_reward_less_its_value() -> None:
    own, values = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.3, 0.3, 1.0])
    found = gae(own, values, torch.ones(3, dtype=torch.bool), gae_lambda=0.7)
    torch.testing.assert_close(found, own - values)


def test_an_episode_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="last step has to end"):
        gae(torch.ones(2), torch.ones(2), torch.tensor([True, False]), gae_lambda=1.0)


Numbers = st.floats(-5, 5, width=32)


@settings(max_examples=50)
@given(
    st.lists(st.tuples(Numbers, Numbers, st.booleans()), min_size=1, max_size=20),
    st.floats(0.0, 1.0),
)
def test_advantages_are_those_of_stable_baselines3(
    steps: list[tuple[float, float, bool]], gae_lambda: float
) -> None:
    buffers = pytest.importorskip("stable_baselines3.common.buffers")
    own, values, ends = ([step[i] for step in steps] for i in range(3))
    ends[-1] = True
    buffer = buffers.RolloutBuffer(
        len(steps),
        spaces.Discrete(2),
        spaces.Discrete(2),
        "cpu",
        gae_lambda=gae_lambda,
        gamma=1.0,
    )
    for t, (reward, value, _) in enumerate(steps):
        starts = np.array([t == 0 or ends[t - 1]])
        nothing = np.zeros((1, 1))
        buffer.add(
            nothing, nothing, np.array([reward]), starts, torch.tensor([value]), torch.zeros(1)
        )
    # The value after the last step must not count, so it is a large one.
    buffer.compute_returns_and_advantage(torch.tensor([1000.0]), np.array([True]))
    found = gae(
        torch.tensor(own),
        torch.tensor(values),
        torch.tensor(ends),
        gae_lambda=gae_lambda,
    )
    expected = torch.from_numpy(buffer.advantages[:, 0])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_explained_variance_by_hand() -> None:
    returns = torch.tensor([0.0, 2.0, 4.0])  # variance 4
    assert explained_variance(returns, returns) == 1
    assert explained_variance(torch.full((3,), 7.0), returns) == 0
    # Errors 1, 0, 1: variance 1/3, and 1 - (1/3) / 4 = 11/12
    assert explained_variance(torch.tensor([-1.0, 2.0, 3.0]), returns) == pytest.approx(11 / 12)
    assert np.isnan(explained_variance(torch.zeros(3), torch.ones(3)))


def plain(policy: Policy) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int]]:
    """By plain calls: log-probabilities and entropies of agent tokens, those of expert tokens,
    hidden states of the agent actions' states, and the number of tokens of each agent action.
    """  # fmt: skip
    logprobs, entropies, expert, hidden, lengths = [], [], [], [], []
    steps = iter(ACTIONS)
    for d in rendered(policy, OWN):
        for state, action in zip(states_of(d), d.actions, strict=True):
            expert.append(plain_logprobs(policy.model, state, action))
            for text in next(steps):
                ids = policy.renderer.action(text)
                logprobs.append(plain_logprobs(policy.model, state, ids))
                whole = torch.tensor([[*state, *ids]])
                logits = policy.model(input_ids=whole).logits[0, len(state) - 1 : -1]
                entropies.append(categorical_entropy(logits))
                hidden.append(
                    policy.model.model(input_ids=whole).last_hidden_state[0, len(state) - 1]
                )
                lengths.append(len(ids))
    return (
        torch.cat(logprobs), torch.cat(entropies), torch.cat(expert), torch.stack(hidden), lengths
    )  # fmt: skip


@pytest.mark.parametrize(("whiten", "ratio"), [(True, "token"), (False, "token"), (True, "step")])
def test_loss_and_gradient_are_those_of_plain_calls(
    whiten: bool, ratio: Literal["token", "step"]
) -> None:
    start = in_float64(random_policy(scale=4.0))
    policy, value_head = copy_of(start), head(start)
    practised, logged = trees(policy), list[Metrics]()
    own = rewards(practised)
    snapshots: list[tuple[Policy, ValueHead]] = []

    def note(row: Metrics) -> None:
        logged.append(row)
        now = ValueHead(policy.layers)
        now.load_state_dict(value_head.state_dict())
        snapshots.append((copy_of(policy), now))

    coefs = {"vf_coef": 0.3, "ent_coef": 0.2, "kl_coef": 0.4, "sft_coef": 0.6, "clip_range": 0.05}
    slow = config(1e-4, epochs=4, whiten=whiten, ratio=ratio, **coefs)
    ppo_round(policy, value_head, practised, own, slow, seed=0, log=note)

    agent_rewards = torch.cat([r[~p.is_expert] for r, p in zip(own, practised, strict=True)])
    with torch.no_grad():
        old, _, _, states, lengths = plain(start)
        advantages = agent_rewards - head(start)(states)[:, 0]
    if whiten:
        advantages = (advantages - advantages.mean()) / advantages.std(correction=0)
    now, value_now = snapshots[2]
    new, entropies, expert, states, _ = plain(now)
    log_ratio = new - old
    kl = (log_ratio.exp() - 1 - log_ratio).mean()
    if ratio == "step":
        log_ratio = torch.stack([part.sum() for part in log_ratio.split(lengths)])
    else:
        advantages = torch.repeat_interleave(advantages, torch.tensor(lengths))
    ratios = log_ratio.exp()
    policy_loss = -torch.minimum(ratios * advantages, ratios.clamp(0.95, 1.05) * advantages).mean()
    value_loss = (value_now(states.detach())[:, 0] - agent_rewards).square().mean()
    approx_kl = (ratios - 1 - log_ratio).mean()
    loss = policy_loss + 0.3 * value_loss - 0.2 * entropies.mean() + 0.4 * kl - 0.6 * expert.mean()
    norm = gradient_norm(loss, [now.model])
    clipfrac = ((ratios < 0.95) | (ratios > 1.05)).double().mean()
    assert 0 < float(clipfrac) < 1
    expected = {
        "loss": loss, "policy_loss": policy_loss, "value_loss": value_loss, "approx_kl": approx_kl,
        "entropy": entropies.mean(), "sft_loss": -expert.mean(), "clipfrac": clipfrac,
    }  # fmt: skip
    numbers = {name: float(value.detach()) for name, value in expected.items()}
    numbers["grad_norm"] = norm
    assert {name: logged[3][name] for name in numbers} == pytest.approx(numbers, rel=1e-6)


def test_the_first_update_starts_at_ratio_one() -> None:
    policy, logged = in_float64(random_policy(scale=4.0)), list[Metrics]()
    practised = trees(policy)
    ppo_round(
        policy,
        head(policy),
        practised,
        rewards(practised),
        config(epochs=2),
        seed=0,
        log=logged.append,
    )
    assert logged[0]["approx_kl"] == pytest.approx(0, abs=1e-12)
    assert logged[0]["clipfrac"] == 0
    assert logged[1]["approx_kl"] > 1e-6


def test_entropy_is_that_of_the_categorical_distribution() -> None:
    policy = in_float64(random_policy(scale=4.0))
    tree = trees(policy)[0].tree
    (packed,) = pack([tree], 10_000)
    with torch.no_grad():
        _, entropies = policy.read_with_entropies(packed)
        expected = []
        for path in tree.paths:
            ids = [tree.tokens[n] for n in tree.ancestors(path[-1])]
            logits = policy.model(input_ids=torch.tensor([ids])).logits[0, -len(path) - 1 : -1]
            expected.append(categorical_entropy(logits))
    assert float(entropies.std()) > 0.01
    torch.testing.assert_close(entropies, torch.cat(expected), rtol=1e-9, atol=1e-10)


def test_the_gradient_of_the_value_does_not_reach_the_policy() -> None:
    policy = in_float64(random_policy(scale=4.0))
    value_head, practised = ValueHead(policy.layers), trees(policy)
    before = [p.detach().clone() for p in policy.model.parameters()]
    same = [torch.ones(len(p.is_expert), dtype=torch.float64) for p in practised]
    logged = list[Metrics]()
    # Equal rewards and values: all whitened advantages are 0, and the value loss is all there is.
    settings = config(vf_coef=1.0, ent_coef=0.0)
    ppo_round(policy, value_head, practised, same, settings, seed=0, log=logged.append)
    assert logged[0]["value_loss"] == pytest.approx(1)
    assert logged[0]["grad_norm"] == 0
    assert float(value_head.bias.detach().abs()) > 0
    torch.testing.assert_close(list(policy.model.parameters()), before, rtol=0, atol=0)


def test_values_come_to_be_the_rewards() -> None:
    policy, logged = in_float64(random_policy()), list[Metrics]()
    practised = trees(policy)
    same = [torch.full((len(p.is_expert),), 0.2, dtype=torch.float64) for p in practised]
    value_head = ValueHead(policy.layers)
    ppo_round(policy, value_head, practised, same, config(epochs=60), seed=0, log=logged.append)
    assert logged[0]["value_loss"] == pytest.approx(0.04)
    assert logged[-1]["value_loss"] < 0.004


def test_the_experts_rewards_do_not_matter() -> None:
    start = in_float64(random_policy(scale=4.0))
    practised = trees(start)
    own, found = rewards(practised), []
    other = [r + 5 * p.is_expert for r, p in zip(own, practised, strict=True)]
    for given_rewards in (own, other):
        policy = copy_of(start)
        logged = list[Metrics]()
        ppo_round(
            policy,
            head(start),
            practised,
            given_rewards,
            config(sft_coef=0.5),
            seed=0,
            log=logged.append,
        )
        found.append((logged, [p.detach() for p in policy.model.parameters()]))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=0)


def test_packing_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    start = in_float64(random_policy(scale=4.0))
    practised = practised_trees(start, 3)
    own = rewards(practised)

    def train(token_budget: int, log: Log) -> list[torch.nn.Module]:
        policy, value_head = with_budget(copy_of(start), token_budget), head(start)
        coefs = {"ent_coef": 0.1, "kl_coef": 0.1, "sft_coef": 0.5}
        settings = config(epochs=2, batch_size=3, **coefs)
        ppo_round(policy, value_head, practised, own, settings, seed=4, log=log)
        return [policy.model, value_head]

    assert_packing_changes_nothing(train, monkeypatch)


def test_an_even_policy_has_the_entropy_of_the_whole_vocabulary() -> None:
    policy, logged = in_float64(random_policy(scale=0.0)), list[Metrics]()
    practised = trees(policy)
    ppo_round(
        policy, head(policy), practised, rewards(practised), config(), seed=0, log=logged.append
    )
    assert logged[0]["entropy"] == pytest.approx(log(len(policy.renderer.tokenizer)))


def test_entropies_have_a_gradient_only_if_they_have_a_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    differentiated: list[Tensor] = []
    plain_read = Policy.read_with_entropies

    def read(self: Policy, packed: Pack) -> tuple[Reading, Tensor]:
        found, entropies = plain_read(self, packed)
        entropies.register_hook(differentiated.append)
        return found, entropies

    monkeypatch.setattr(Policy, "read_with_entropies", read)
    for weight in (0.0, 0.1):
        policy, logged = random_policy(scale=4.0), list[Metrics]()
        practised = trees(policy)
        own = [r.float() for r in rewards(practised)]
        settings = config(ent_coef=weight)
        value_head = ValueHead(policy.layers)
        ppo_round(policy, value_head, practised, own, settings, seed=0, log=logged.append)
        assert bool(differentiated) == bool(weight)
        assert logged[0]["entropy"] > 0
