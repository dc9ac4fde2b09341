"""Evaluation: fixed balanced panels, summaries of episodes, and how like the expert a policy is."""

from collections import Counter
from hashlib import sha256

import pytest
import torch

from fakes import (
    SPLITS,
    BoxWorld,
    demonstrations,
    in_float64,
    novice,
    plain_logprobs,
    random_policy,
    rendered,
    states_of,
    with_budget,
)
from stepagent.evaluation import (
    EvaluationConfig,
    choose_items,
    evaluate,
    likeness,
    panel_hash,
    summarize,
)
from stepagent.inspection import inspect
from stepagent.model.generation import Decoding
from stepagent.model.opening import PolicyError
from stepagent.rollout import rollout
from stepagent.types import Trajectory

OWN = [*demonstrations("dev")[:4], *demonstrations("dev")[12:16]]


def test_a_panel_is_fixed_by_its_seed_and_takes_as_many_of_each_group() -> None:
    world = BoxWorld()
    panel = choose_items(world, "train", 5, seed=0)
    assert choose_items(BoxWorld(), "train", 5, seed=0) == panel
    assert choose_items(world, "train", 5, seed=1) != panel
    assert Counter(map(world.group, panel)) == {"near": 5, "far": 5}
    assert len(set(panel)) == 10 and set(panel) <= set(world.items("train"))
    assert set(choose_items(world, "dev", 5, seed=0)) <= set(world.items("dev"))
    # A larger panel of the same seed holds the smaller one.
    assert set(panel) <= set(choose_items(world, "train", 6, seed=0))


def test_a_panel_does_not_follow_the_order_of_the_items() -> None:
    assert choose_items(BoxWorld(), "train", 5, seed=0)[:5] != tuple(BoxWorld().items("train")[:5])


def test_a_group_with_fewer_items_gives_all_it_has() -> None:
    panel = choose_items(BoxWorld(), "dev", 1000, seed=0)
    assert sorted(panel) == sorted(BoxWorld().items("dev"))
    assert len(panel) == 2 * len(SPLITS["dev"])


def test_the_hash_is_that_of_the_items_in_order() -> None:
    assert panel_hash(["a/1", "b/2"]) == sha256(b"a/1\nb/2").hexdigest()
    assert panel_hash(["b/2", "a/1"]) != panel_hash(["a/1", "b/2"])
    assert panel_hash(["a/1", "b/2"]) != panel_hash(["a/1b/2"])


def episode(score: float | None, success: bool | None) -> Trajectory:
    return demonstrations()[0].model_copy(update={"score": score, "success": success})


def test_summary_by_hand() -> None:
    # Scores 100, 50, 0: mean 50. Two solved of three.
    found = summarize([episode(100.0, True), episode(50.0, True), episode(0.0, False)])
    assert (found.score.mean, found.score.n) == (50, 3)
    assert (found.success.mean, found.success.n) == (2 / 3, 3)
    assert found.success.low is not None and 0 < found.success.low < 2 / 3
    assert [e.score for e in found.episodes] == [100, 50, 0]


def test_summary_of_nothing_has_no_numbers() -> None:
    assert (summarize([]).score.mean, summarize([]).success.mean) == (None, None)


def test_an_episode_without_a_score_counts_for_success_only() -> None:
    found = summarize([episode(80.0, None), episode(None, True)])
    assert (found.score.mean, found.score.n) == (80, 1)
    assert (found.success.mean, found.success.n) == (0.5, 2)


@pytest.mark.parametrize("token_budget", [1, 10_000])
def test_likeness_is_that_of_plain_calls(token_budget: int) -> None:
    policy = in_float64(novice())
    own = rendered(policy, OWN)
    found = likeness(with_budget(policy, token_budget), own, max_new_tokens=6)
    logprobs, same = [], []
    greedy = inspect(policy, own, Decoding(max_new_tokens=6, temperature=0.0), seed=9)
    actions = iter(greedy)
    with torch.no_grad():
        for d in own:
            for state, action in zip(states_of(d), d.actions, strict=True):
                logprobs.append(float(plain_logprobs(policy.model, state, action).sum()))
                same.append(next(actions).agent_actions[0].token_ids == action)
    assert 0 < sum(same) < len(same)
    assert found.agreement == pytest.approx(sum(same) / len(same))
    assert found.expert_logprob == pytest.approx(sum(logprobs) / len(logprobs), rel=1e-9)


def test_likeness_of_an_even_policy_is_known() -> None:
    policy = in_float64(random_policy(scale=0.0))
    own = rendered(policy, OWN)
    found = likeness(policy, own, max_new_tokens=6)
    lengths = [len(action) for d in own for action in d.actions]
    # Each token has one chance in as many as there are; the first of them is always the greedy one.
    even = -torch.tensor(float(len(policy.renderer.tokenizer))).log() * sum(lengths) / len(lengths)
    assert found.expert_logprob == pytest.approx(float(even), rel=1e-6)
    assert found.agreement == 0


def test_evaluation_counts_the_episodes_of_its_panel() -> None:
    policy, world = novice(), BoxWorld()
    items = choose_items(world, "test", 6, seed=0)
    config = EvaluationConfig(decoding=Decoding(max_new_tokens=6, temperature=0.0))
    found = evaluate(policy, world, items, config, seed=0)
    assert [e.id for e in found.episodes] == list(items)
    assert found.score.mean == pytest.approx(sum(e.score or 0 for e in found.episodes) / 12)
    assert found.success.mean == sum(e.success is True for e in found.episodes) / 12
    assert evaluate(policy, world, items, config, seed=1) == found


def test_an_action_longer_than_the_context_leaves_no_room_and_says_so() -> None:
    world = BoxWorld()
    with pytest.raises(PolicyError, match=r"leaves room for 0 beside an action; use a model with "):
        list(
            rollout(
                random_policy(),
                world,
                world.items("dev")[:1],
                Decoding(max_new_tokens=9999),
                seed=0,
            )
        )
