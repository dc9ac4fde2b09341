"""The discriminator: by hand, against divergences that are known, and on held-out steps."""

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
    demonstrations,
    in_float64,
    lesson_of,
    practised_trees,
    practised_with,
    random_policy,
    rendered,
    states_of,
    with_budget,
)
from stepagent.algorithms.discriminator import (
    DiscriminatorConfig,
    discriminator_loss,
    divergence,
    expert_logits,
    held_out,
    js_divergence,
    step_rewards,
    train_discriminator,
)
from stepagent.inspection import StepTree, path_logprobs, step_trees
from stepagent.learners.base import LearnerStopped
from stepagent.learners.inverse import Inverse, InverseConfig
from stepagent.model.policy import Policy
from stepagent.model.prefix_tree import PrefixTree
from stepagent.model.updates import Metrics, OptimizerConfig
from stepagent.practice import Lesson, with_rewards
from stepagent.types import PracticedStep

OWN = [*demonstrations()[:4], *demonstrations()[40:44]]


def discriminator(policy: Policy) -> Policy:
    """A copy of the policy that has moved a little."""
    found = policy.copy("discriminator")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    return found


def plain_logprob(policy: Policy, ids: list[int], length: int) -> Tensor:
    """Log-probability of the last ids by one call of the model."""
    logits = policy.model(input_ids=torch.tensor([ids])).logits[0, -length - 1 : -1]
    chosen = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[-length:])[:, None])
    return chosen.sum()


def config(warmup_epochs: int = 4) -> DiscriminatorConfig:
    return DiscriminatorConfig(
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_share=0.0),
        warmup_epochs=warmup_epochs,
        batch_size=3,
    )


def lesson(policy: Policy, actions: dict[str, str] | None) -> Lesson:
    """Practice on `OWN`, held out too, by an agent whose action follows from the expert's.

    `actions` gives the agent's action by the first word of the expert's; None copies the expert.
    """
    own = rendered(policy, OWN)
    taken = [
        [actions[step.action.split()[0]] if actions else step.action]
        for t in OWN
        for step in t.steps
    ]
    steps = practised_with(policy, OWN, taken)
    return lesson_of(own, steps, own, steps)


def test_loss_by_hand() -> None:
    # D = 3/4 for one expert action; 1/4 and 1/2 for two agent actions.
    # L = -log 3/4 - (log 3/4 + log 1/2) / 2 = 0.2876821 + (0.2876821 + 0.6931472) / 2 = 0.7780967
    # Right: the expert's; of the agent's one and a half. Accuracy (1 + 1.5 / 2) / 2 = 0.875
    logits = torch.tensor([log(3), -log(3), 0.0])
    is_expert = torch.tensor([True, False, False])
    whole = discriminator_loss(logits, is_expert, 1, 2)
    assert float(whole.loss) == pytest.approx(0.7780967, abs=1e-6)
    assert float(whole.accuracy) == pytest.approx(0.875)
    # The parts of a batch add up to the whole.
    parts = [discriminator_loss(logits[k], is_expert[k], 1, 2) for k in (slice(2), slice(2, 3))]
    assert float(parts[0].loss + parts[1].loss) == pytest.approx(0.7780967, abs=1e-6)
    assert float(parts[0].accuracy + parts[1].accuracy) == pytest.approx(0.875)


def test_label_smoothing_by_hand() -> None:
    # Expert, D = 3/4:  -(0.9 log 3/4 + 0.1 log 1/4) = 0.9 * 0.2876821 + 0.1 * 1.3862944 = 0.3975433
    # Agent,  D = 3/4:  -(0.9 log 1/4 + 0.1 log 3/4) = 0.9 * 1.3862944 + 0.1 * 0.2876821 = 1.2764331
    logits, is_expert = torch.tensor([log(3), log(3)]), torch.tensor([True, False])
    smooth = discriminator_loss(logits, is_expert, 1, 1, label_smoothing=0.1)
    assert float(smooth.loss) == pytest.approx(0.3975433 + 1.2764331, abs=1e-6)


Counts = st.lists(st.integers(1, 6), min_size=4, max_size=4)


def samples(p: Sequence[int], q: Sequence[int], logits: Tensor) -> tuple[Tensor, Tensor, int, int]:
    """Each action as often as expert and agent take it, as arguments of `discriminator_loss`."""
    actions = torch.repeat_interleave(torch.arange(4).repeat(2), torch.tensor([*p, *q]))
    is_expert = torch.arange(len(actions)) < sum(p)
    return logits[actions], is_expert, sum(p), sum(q)


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    def entropy(x: Tensor) -> Tensor:
        return -(x * x.log()).sum()

    return entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2


@given(Counts, Counts)
def test_with_the_optimal_discriminator_the_estimate_is_the_divergence(
    p: list[int], q: list[int]
) -> None:
    expert = torch.tensor(p, dtype=torch.float64) / sum(p)
    agent = torch.tensor(q, dtype=torch.float64) / sum(q)
    loss = discriminator_loss(*samples(p, q, (expert / agent).log())).loss
    exact = float(jensen_shannon(expert, agent))
    assert js_divergence(float(loss)) == pytest.approx(max(0.0, exact), abs=1e-7)


@given(Counts, Counts, st.lists(st.floats(-5, 5), min_size=4, max_size=4))
def test_with_any_other_discriminator_the_estimate_is_no_higher(
    p: list[int], q: list[int], errors: list[float]
) -> None:
    expert = torch.tensor(p, dtype=torch.float64) / sum(p)
    agent = torch.tensor(q, dtype=torch.float64) / sum(q)
    logits = (expert / agent).log() + torch.tensor(errors, dtype=torch.float64)
    loss = discriminator_loss(*samples(p, q, logits)).loss
    assert js_divergence(float(loss)) <= float(jensen_shannon(expert, agent)) + 1e-7


def test_divergence_of_a_discriminator_that_knows_nothing_and_of_one_that_knows_all() -> None:
    is_expert = torch.tensor([True, False])
    nothing = discriminator_loss(torch.zeros(2), is_expert, 1, 1)
    assert js_divergence(float(nothing.loss)) == pytest.approx(0, abs=1e-6)
    assert float(nothing.accuracy) == 0.5
    everything = discriminator_loss(torch.tensor([50.0, -50.0]), is_expert, 1, 1)
    assert js_divergence(float(everything.loss)) == pytest.approx(log(2))
    assert float(everything.accuracy) == 1
    wrong = discriminator_loss(torch.tensor([-50.0, 50.0]), is_expert, 1, 1)
    assert js_divergence(float(wrong.loss)) == 0


@given(st.floats(-30, 30))
def test_reward_forms_are_the_functions_of_d_that_they_are_named_after(logit: float) -> None:
    f = torch.tensor([logit], dtype=torch.float64)
    d = torch.sigmoid(f)
    torch.testing.assert_close(step_rewards(f, "log-d"), torch.log(d))
    torch.testing.assert_close(step_rewards(f, "logit"), f)
    # 1 - D itself would lose all digits near D = 1.
    torch.testing.assert_close(step_rewards(f, "gail"), -torch.log(torch.sigmoid(-f)))
    torch.testing.assert_close(step_rewards(f, "gail") + step_rewards(f, "log-d"), f)


def test_reward_forms_by_hand_and_far_out() -> None:
    f = torch.tensor([log(3), 0.0])  # D = 3/4 and 1/2
    torch.testing.assert_close(step_rewards(f, "gail"), torch.tensor([log(4), log(2)]))
    torch.testing.assert_close(step_rewards(f, "log-d"), torch.tensor([log(0.75), -log(2)]))
    far = torch.tensor([1000.0, -1000.0])
    assert step_rewards(far, "gail").tolist() == [1000, 0]
    assert step_rewards(far, "log-d").tolist() == [0, -1000]


def test_at_the_start_everything_is_even() -> None:
    policy = random_policy()
    trees = practised_trees(policy)
    agent = path_logprobs(policy, trees)
    logits = expert_logits(policy.copy("discriminator"), trees, agent)
    assert all(not f.any() for f in logits)
    assert held_out(logits, trees).accuracy == 0.5


def test_logits_are_the_ratios_of_likelihoods_by_plain_calls() -> None:
    policy = in_float64(random_policy(scale=4.0))
    found = discriminator(policy)
    actions = [["jump", "look at the box"] for t in OWN for _ in t.steps]
    practised = practised_with(policy, OWN, actions)
    own = rendered(policy, OWN)
    expected = []
    with torch.no_grad():
        for d in own:
            steps = [p for p in practised if p.trajectory_id == d.trajectory.id]
            for state, action, step in zip(states_of(d), d.actions, steps, strict=True):
                for ids in (action, *(a.token_ids for a in step.agent_actions)):
                    p, pi = (plain_logprob(x, [*state, *ids], len(ids)) for x in (found, policy))
                    expected.append(p - pi)
    assert torch.stack(expected).std() > 0.1
    trees = step_trees(own, practised)
    for token_budget in (1, 10_000):
        found.layers.token_budget = token_budget
        logits = expert_logits(found, trees, path_logprobs(policy, trees))
        torch.testing.assert_close(torch.cat(logits), torch.stack(expected), rtol=1e-8, atol=1e-10)


def test_packing_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = in_float64(random_policy(scale=4.0))
    practised = practised_trees(policy)

    def train(token_budget: int, log: Log) -> list[Policy]:
        own = with_budget(policy, token_budget)
        found, agent = discriminator(own), path_logprobs(own, practised)
        train_discriminator(found, practised, agent, config(), epochs=2, seed=5, log=log)
        return [found]

    assert_packing_changes_nothing(train, monkeypatch)


def test_training_stops_after_the_epoch_that_was_enough() -> None:
    policy, logged = random_policy(), list[Metrics]()
    trees = practised_trees(policy, 3)
    answers = iter([False, True])
    train_discriminator(
        discriminator(policy), trees, path_logprobs(policy, trees), config(), epochs=5, seed=0,
        log=logged.append, enough=lambda: next(answers),
    )  # fmt: skip
    assert len(logged) == 2 * 2  # six trees in batches of three


def small_tree(num_agent: int, *, same: bool) -> StepTree:
    """Two steps with so many agent actions each."""
    flags = [True, *[False] * num_agent] * 2
    is_same = [expert or same for expert in flags]
    every = torch.ones(len(flags), dtype=torch.bool)
    return StepTree(PrefixTree(), torch.tensor(flags), torch.tensor(is_same), every)


def test_a_copy_of_the_expert_is_at_chance_on_held_out_steps() -> None:
    practised = [small_tree(1, same=True) for _ in range(3)]
    logits = [torch.tensor([2.0, 2.0, -1.0, -1.0]) for _ in practised]
    found = held_out(logits, practised)
    assert (found.js_divergence, found.accuracy, found.beats_chance) == (0.0, 0.5, False)


def panel(
    p: Sequence[int], q: Sequence[int], logits: Tensor, num_trees: int
) -> tuple[list[Tensor], list[StepTree]]:
    """Trees that all hold each action as often as expert and agent take it, and their logits."""
    f, is_expert, *_ = samples(p, q, logits)
    every = torch.ones(len(f), dtype=torch.bool)
    tree = StepTree(PrefixTree(), is_expert, is_expert, every)
    return [f] * num_trees, [tree] * num_trees


@given(Counts, Counts, st.floats(0.2, 20))
def test_the_divergence_does_not_suffer_from_a_discriminator_that_is_too_sure_of_itself(
    p: list[int], q: list[int], sureness: float
) -> None:
    expert = torch.tensor(p, dtype=torch.float64) / sum(p)
    agent = torch.tensor(q, dtype=torch.float64) / sum(q)
    logits = sureness * (expert / agent).log()
    exact = float(jensen_shannon(expert, agent))
    assert divergence(*panel(p, q, logits, 2)) == pytest.approx(max(0.0, exact), abs=1e-6)


@given(Counts, Counts, st.lists(st.floats(-5, 5), min_size=4, max_size=4))
def test_scaling_brings_the_estimate_nearer_and_never_above_the_divergence(
    p: list[int], q: list[int], errors: list[float]
) -> None:
    expert = torch.tensor(p, dtype=torch.float64) / sum(p)
    agent = torch.tensor(q, dtype=torch.float64) / sum(q)
    logits = (expert / agent).log() + torch.tensor(errors, dtype=torch.float64)
    plain = js_divergence(float(discriminator_loss(*samples(p, q, logits)).loss))
    found = divergence(*panel(p, q, logits, 2))
    assert plain - 1e-6 <= found <= float(jensen_shannon(expert, agent)) + 1e-7


def test_each_half_is_scaled_by_the_other_half() -> None:
    def tree(num_right: int) -> tuple[Tensor, StepTree]:
        is_expert = torch.tensor([True, False] * 20)
        sign = torch.where(torch.arange(40) < 2 * num_right, 1.0, -1.0)
        return torch.where(is_expert, sign, -sign), StepTree(PrefixTree(), *[is_expert] * 3)

    # Right in 18 and in 15 of 20: the best scales are log 9 and log 3, so the first is scaled by
    # log 3 and has 0.9 log 4/3 + 0.1 log 4 = 0.3975433 on each side, the second by log 9 and has
    # 0.75 log 10/9 + 0.25 log 10 = 0.6546666.
    logits, trees = zip(tree(18), tree(15), strict=True)
    expected = (2 * log(2) - (0.3975433 + 0.6546666)) / 2
    assert divergence(logits, trees) == pytest.approx(expected, abs=1e-5)
    # Alone it is taken as it is: 0.9 log(1 + exp -1) + 0.1 log(1 + exp 1) = 0.4132617 a side.
    assert divergence(logits[:1], trees[:1]) == pytest.approx(log(2) - 0.4132617, abs=1e-6)


def test_a_discriminator_that_points_the_wrong_way_finds_nothing() -> None:
    logits, trees = panel([1, 2, 3, 4], [4, 3, 2, 1], torch.tensor([2.0, 1.0, -1.0, -2.0]), 2)
    assert divergence(logits, trees) == pytest.approx(0, abs=1e-4)


def test_chance_is_beaten_by_preferring_the_expert_in_most_trajectories() -> None:
    practised = [small_tree(2, same=False) for _ in range(8)]
    good = torch.tensor([1.0, 0.0, 0.5, 3.0, -2.0, 2.0])
    # Expert actions -1 and 3 with two agent actions each: 0 of 2 and 2 of 2 are half of all.
    even = torch.tensor([-1.0, 0.0, 0.5, 3.0, -2.0, 2.0])
    assert held_out([good] * 8, practised).beats_chance
    assert not held_out([even] * 8, practised).beats_chance
    assert not held_out([-good] * 8, practised).beats_chance
    # 5 of 8 trajectories: 0.625 - 1.645 * 0.5175 / sqrt 8 = 0.32; 7 of 8: 0.875 - 0.206 = 0.67
    assert not held_out([good] * 5 + [-good] * 3, practised).beats_chance
    assert held_out([good / 10] * 7 + [-good / 10], practised).beats_chance
    # Right as often, but so sure where it is wrong that its loss is worse than a coin's.
    assert not held_out([good] * 7 + [-10 * good], practised).beats_chance
    assert not held_out([good], practised[:1]).beats_chance


def test_rewards_reach_the_step_and_action_they_belong_to() -> None:
    policy = random_policy()
    own = OWN[:2]
    actions = [["jump", t.steps[step].action] for t in own for step in range(len(t.steps))]
    practised = practised_with(policy, own, actions)
    trees = step_trees(rendered(policy, own), practised)
    # A reward that says which path it is of: its tree, then its number in the tree.
    rewards = [100.0 * i + torch.arange(len(t.is_expert)) for i, t in enumerate(trees)]
    found = with_rewards(practised, trees, rewards)
    expected = [
        (100.0 * i + 3 * step, [100.0 * i + 3 * step + 1, 100.0 * i + 3 * step + 2])
        for i, t in enumerate(own)
        for step in range(len(t.steps))
    ]
    assert [(p.expert_reward, [a.reward for a in p.agent_actions]) for p in found] == expected

    def without(step: PracticedStep) -> PracticedStep:
        bare = tuple(a.model_copy(update={"reward": None}) for a in step.agent_actions)
        return step.model_copy(update={"expert_reward": None, "agent_actions": bare})

    assert [without(p) for p in found] == practised


def test_practised_steps_must_cover_every_step_in_order() -> None:
    policy = random_policy()
    practised = practised_with(policy, OWN, [["jump"] for t in OWN for _ in t.steps])
    with pytest.raises(ValueError, match=OWN[0].id):
        step_trees(rendered(policy, OWN), practised[1:])


def test_inverse_reflection_refuses_a_discriminator_at_chance() -> None:
    policy = random_policy()
    learner = Inverse(InverseConfig(discriminator=config(warmup_epochs=2)), policy)
    with pytest.raises(LearnerStopped, match="2 epochs"):
        learner.measure(policy, lesson(policy, None), seed=0, log=lambda *_: None)
    assert not learner.is_warm


def test_inverse_reflection_is_the_same_after_saving_and_loading(tmp_path: Path) -> None:
    policy = random_policy()
    own = lesson(policy, {"go": "jump", "open": "go on"})
    settings = InverseConfig(discriminator=config(warmup_epochs=20))
    learner, again = Inverse(settings, policy), Inverse(settings, random_policy(1))
    learner.measure(policy, own, seed=0, log=lambda *_: None)
    measured = learner.judge(policy, own.held_out_trees)
    assert measured.beats_chance and learner.is_warm
    learner.save(tmp_path)
    again.load(tmp_path)
    assert again.is_warm
    agent = path_logprobs(policy, own.held_out_trees)
    found = [expert_logits(x.discriminator, own.held_out_trees, agent) for x in (learner, again)]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert held_out(found[1], own.held_out_trees) == measured


def test_inverse_reflection_rewards_practice_by_the_discriminator_and_moves_the_policy() -> None:
    policy = random_policy()
    own = lesson(policy, {"go": "jump", "open": "go on"})
    learner = Inverse(InverseConfig(discriminator=config(warmup_epochs=20)), policy)
    before = [p.detach().clone() for p in policy.model.parameters()]
    logged = list[tuple[str, Metrics]]()
    agent = path_logprobs(policy, own.held_out_trees)
    found = learner.learn(policy, own, seed=0, log=lambda *row: logged.append(row))
    assert found is not None
    expected = expert_logits(learner.discriminator, own.held_out_trees, agent)  # the form "logit"
    torch.testing.assert_close(torch.cat(found), torch.cat(expected))
    # The lesson's steps are held out too, so the agent's mean reward is that of the same numbers.
    is_expert = torch.cat([t.is_expert for t in own.trees])
    assert {phase for phase, _ in logged} == {"discriminator", "start", "ppo"}
    mean = float(torch.cat(expected)[~is_expert].mean())
    assert logged[-1][1]["reward_mean"] == pytest.approx(mean, rel=1e-4)
    moved = zip(policy.model.parameters(), before, strict=True)
    assert any(not torch.equal(p, q) for p, q in moved)

    # The next round's rewards are relative to the policy that has moved.
    now = path_logprobs(policy, own.held_out_trees)
    assert not torch.allclose(torch.cat(now), torch.cat(agent))
    found = learner.learn(policy, own, seed=1, log=lambda *_: None)
    assert found is not None
    expected = expert_logits(learner.discriminator, own.held_out_trees, now)
    torch.testing.assert_close(torch.cat(found), torch.cat(expected))
