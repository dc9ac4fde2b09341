"""Every learner learns: shown in the world of boxes by permutation tests with fixed seeds."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats

from fakes import (
    BoxWorld,
    demonstrations,
    lesson_of,
    novice,
    practised_with,
    random_policy,
    rendered,
)
from stepagent.algorithms.discriminator import (
    DiscriminatorConfig,
    expert_logits,
    held_out,
    train_discriminator,
)
from stepagent.algorithms.dpo import DPOConfig
from stepagent.algorithms.ppo import PPOConfig, ValueHead, ppo, read_before
from stepagent.evaluation import EvaluationConfig, evaluate, likeness
from stepagent.inspection import StepTree, inspect, path_logprobs, step_tree, step_trees
from stepagent.learners.implicit import Implicit
from stepagent.model.generation import Decoding
from stepagent.model.packs import read_paths
from stepagent.model.policy import Policy
from stepagent.model.updates import Metrics, OptimizerConfig
from stepagent.types import PracticedStep, Trajectory

SAMPLED = Decoding(max_new_tokens=6, temperature=1.0)
TRAIN = [*demonstrations()[:20], *demonstrations()[40:60]]
HELD_OUT = list(demonstrations("dev"))


def is_greater(after: Sequence[float], before: Sequence[float], *, paired: bool) -> float:
    """One-sided p-value of the permutation test that the mean is greater after than before."""
    return float(
        stats.permutation_test(
            (np.array(after, dtype=float), np.array(before, dtype=float)),
            lambda x, y, axis: np.mean(x, axis=axis) - np.mean(y, axis=axis),
            permutation_type="samples" if paired else "independent",
            vectorized=True,
            n_resamples=4999,
            alternative="greater",
            rng=0,
        ).pvalue
    )


def test_the_permutation_test_can_fail() -> None:
    noise = np.random.default_rng(0).normal(size=(2, 40)).tolist()
    assert is_greater(noise[0], noise[1], paired=False) > 0.05
    assert is_greater([x - 1 for x in noise[0]], noise[1], paired=True) > 0.95


def successes(policy: Policy) -> list[float]:
    greedy = EvaluationConfig(decoding=Decoding(max_new_tokens=6, temperature=0.0))
    found = evaluate(policy, BoxWorld(), BoxWorld().items("test"), greedy, seed=0)
    return [float(e.success is True) for e in found.episodes]


def expert_logprobs(policy: Policy) -> list[float]:
    """Mean log-probability of the expert's actions in each held-out trajectory."""
    trees = [step_tree(d).tree for d in rendered(policy, HELD_OUT)]
    found = read_paths(policy.layers, trees, lambda p: p.sum_by_path(policy.read(p).logprobs))
    return [float(values.mean()) for values in found]


def sample(policy: Policy, own: Sequence[Trajectory], seed: int) -> list[PracticedStep]:
    return inspect(policy, rendered(policy, own), SAMPLED, seed=seed)


def test_sft_solves_more_than_a_random_policy() -> None:
    before, after = successes(random_policy()), successes(novice(12))
    assert sum(before) == 0
    assert is_greater(after, before, paired=True) < 0.05


def test_implicit_reflection_makes_the_policy_more_like_the_expert() -> None:
    policy = novice()
    start = expert_logprobs(policy), likeness(
        policy, rendered(policy, HELD_OUT), max_new_tokens=6
    )  # fmt: skip
    settings = DPOConfig(optimizer=OptimizerConfig(learning_rate=1e-3), epochs=3)
    for number in range(2):
        lesson = lesson_of(
            rendered(policy, TRAIN), sample(policy, TRAIN, number),
            rendered(policy, HELD_OUT), sample(policy, HELD_OUT, number),
        )  # fmt: skip
        rewards = Implicit(settings).learn(policy, lesson, seed=number, log=lambda *_: None)
        assert rewards is not None
    end = likeness(policy, rendered(policy, HELD_OUT), max_new_tokens=6)
    assert is_greater(expert_logprobs(policy), start[0], paired=True) < 0.05
    assert end.expert_logprob > start[1].expert_logprob
    assert end.agreement >= start[1].agreement


def test_implicit_rewards_of_held_out_steps_prefer_the_expert() -> None:
    policy = novice()
    lesson = lesson_of(
        rendered(policy, TRAIN), sample(policy, TRAIN, 0),
        rendered(policy, HELD_OUT), sample(policy, HELD_OUT, 0),
    )  # fmt: skip
    settings = DPOConfig(optimizer=OptimizerConfig(learning_rate=1e-3), epochs=3)
    rewards = Implicit(settings).learn(policy, lesson, seed=0, log=lambda *_: None)
    assert rewards is not None
    expert, agent = list[float](), list[float]()
    for tree, values in zip(lesson.held_out_trees, rewards, strict=True):
        if not tree.is_same.all():
            expert.append(float(values[tree.is_expert].mean()))
            agent.append(float(values[~tree.is_same].mean()))
    assert is_greater(expert, agent, paired=True) < 0.05


def word_rewards(
    trees: Sequence[StepTree], practised: Sequence[PracticedStep]
) -> list[torch.Tensor]:
    """1 for every action, expert's or agent's, that opens something."""
    steps = iter(practised)
    found = []
    for tree in trees:
        texts = list[str]()
        for _ in range(int(tree.is_expert.sum())):
            step = next(steps)
            texts += [step.expert_action, *(a.text for a in step.agent_actions)]
        found.append(torch.tensor([float("open" in text.split()) for text in texts]))
    return found


def test_ppo_raises_a_reward_that_is_known() -> None:
    policy = novice()
    value_head = ValueHead(policy.layers)
    settings = PPOConfig(optimizer=OptimizerConfig(learning_rate=3e-4), sft_coef=0.0)

    def opened() -> list[float]:
        """Share of actions on held-out steps that open something, for each trajectory."""
        practised = sample(policy, HELD_OUT, 100)
        trees = step_trees(rendered(policy, HELD_OUT), practised)
        own = word_rewards(trees, practised)
        return [float(r[~t.is_expert].mean()) for r, t in zip(own, trees, strict=True)]

    before = opened()
    for number in range(3):
        practised = sample(policy, TRAIN, number)
        trees = step_trees(rendered(policy, TRAIN), practised)
        own = word_rewards(trees, practised)
        start = read_before(policy, value_head, trees)
        ppo(policy, value_head, trees, own, start, settings, seed=number, log=lambda _: None)
    assert 0.1 < np.mean(before) < 0.9
    assert is_greater(opened(), before, paired=True) < 0.05


def trained_discriminator(policy: Policy, practised: Sequence[PracticedStep]) -> Policy:
    found = policy.copy("discriminator")
    settings = DiscriminatorConfig(optimizer=OptimizerConfig(learning_rate=1e-3), label_smoothing=0)
    trees = step_trees(rendered(policy, TRAIN), practised)
    logged = list[Metrics]()
    agent = path_logprobs(policy, trees)
    train_discriminator(found, trees, agent, settings, epochs=6, seed=0, log=logged.append)
    return found


def test_the_discriminator_tells_a_bad_agent_on_held_out_steps() -> None:
    policy = novice(2)
    found = trained_discriminator(policy, sample(policy, TRAIN, 0))
    trees = step_trees(rendered(policy, HELD_OUT), sample(policy, HELD_OUT, 0))
    logits = expert_logits(found, trees, path_logprobs(policy, trees))
    measured = held_out(logits, trees)
    assert measured.beats_chance
    assert measured.accuracy > 0.7 and measured.js_divergence > 0.1
    pairs = [
        (float(f[t.is_expert].mean()), float(f[~t.is_expert].mean()))
        for f, t in zip(logits, trees, strict=True)
    ]
    assert is_greater([p[0] for p in pairs], [p[1] for p in pairs], paired=True) < 0.05


def test_the_discriminator_finds_no_divergence_in_a_copy_of_the_expert() -> None:
    policy = random_policy()
    copies = [[[s.action] for t in own for s in t.steps] for own in (TRAIN, HELD_OUT)]
    found = trained_discriminator(policy, practised_with(policy, TRAIN, copies[0]))
    trees = step_trees(rendered(policy, HELD_OUT), practised_with(policy, HELD_OUT, copies[1]))
    measured = held_out(expert_logits(found, trees, path_logprobs(policy, trees)), trees)
    assert measured.js_divergence == pytest.approx(0, abs=1e-6)
    assert measured.accuracy == pytest.approx(0.5)
    assert not measured.beats_chance
