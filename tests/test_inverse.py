"""Inverse reflection in states of the agent's own episodes."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fakes import demonstrations, in_float64, lesson_of, random_policy, rendered
from stepagent.algorithms.ppo import PPOConfig, ValueHead, read_before
from stepagent.inspection import inspect, path_logprobs, rollout_tree, step_tree
from stepagent.learners.inverse import Inverse, InverseConfig
from stepagent.model.forward import Layers
from stepagent.model.generation import Decoding
from stepagent.model.policy import Policy
from stepagent.model.prefix_tree import Row
from stepagent.rendering.renderer import RenderedTrajectory
from test_pipeline import CONFIG, finish


def own_episodes(policy: Policy, expert: RenderedTrajectory) -> list[RenderedTrajectory]:
    """Two that begin as the expert does: one ends early, one does something else last."""
    other = (*expert.actions[:-1], policy.renderer.action("look in the red box"))
    early = replace(expert, additions=expert.additions[:1], actions=expert.actions[:1])
    return [early, replace(expert, actions=other)]


def test_one_tree_reads_what_a_tree_for_each_episode_reads() -> None:
    policy = in_float64(random_policy(scale=4.0))
    expert = max(rendered(policy, demonstrations()), key=lambda d: len(d.actions))
    early, other = own_episodes(policy, expert)
    whole = rollout_tree([early, other], expert)
    separate = [step_tree(expert), rollout_tree([early]), rollout_tree([other])]
    (found,) = path_logprobs(policy, [whole])
    expected = torch.cat(path_logprobs(policy, separate))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    # What they share is forwarded once.
    assert len(whole.tree) < sum(len(t.tree) for t in separate)
    steps = len(expert.actions)
    assert whole.is_expert.tolist() == [True] * steps + [False] * (1 + steps)
    # Rewards flow back within the agent's episodes only.
    assert whole.is_end.tolist() == [True] * (steps + 1) + [False] * (steps - 1) + [True]


def test_a_run_in_rollout_states_plays_and_learns(tmp_path: Path) -> None:
    inverse = replace(CONFIG.inverse, states="rollout", episodes=2)
    config = replace(CONFIG, methods=("inverse",), rounds=1, inverse=inverse)
    folder = finish(tmp_path / "run", config)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    explored = [row for row in rows if row["phase"] == "explore"]
    # Half of 12 items, two episodes each, before the round and for the last measurement.
    assert [(row["round"], row["episodes"]) for row in explored] == [(1, 12), (2, 12)]
    measured = [row for row in rows if "js_divergence" in row]
    assert [row["round"] for row in measured] == [0, 1]
    weights = [
        (folder / "units" / unit / "model.safetensors").read_bytes()
        for unit in ("sft", "inverse-round1")
    ]
    assert weights[0] != weights[1]


def test_each_tree_is_read_once_for_each_state_of_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = random_policy()
    own = rendered(policy, demonstrations()[:2])
    held_out = rendered(policy, demonstrations()[40:42])
    practised, on_held_out = (inspect(policy, d, Decoding(), seed=0) for d in (own, held_out))
    lesson = lesson_of(own, practised, held_out, on_held_out)
    learner = Inverse(InverseConfig(ppo=PPOConfig(epochs=1, batch_size=2)), policy)
    learner.is_warm = True
    passes = Counter[tuple[str, bool]]()
    plain = Layers.row_hidden

    def row_hidden(self: Layers, row: Row) -> Tensor:
        name = "discriminator" if self is learner.discriminator.layers else "agent"
        passes[name, torch.is_grad_enabled()] += 1
        return plain(self, row)

    monkeypatch.setattr(Layers, "row_hidden", row_hidden)
    policy.layers.token_budget = learner.discriminator.layers.token_budget = 10_000
    found = learner.learn(policy, lesson, seed=0, log=lambda *_: None)
    assert found is not None
    # Without gradient both read what they learn from and what is held out; then one update each.
    assert passes == {
        ("agent", False): 2, ("agent", True): 1,
        ("discriminator", False): 2, ("discriminator", True): 1,
    }  # fmt: skip


def test_log_probabilities_of_paths_are_the_sums_over_their_tokens() -> None:
    policy = random_policy(scale=4.0)
    practised = [step_tree(d) for d in rendered(policy, demonstrations()[:3])]
    before = read_before(policy, ValueHead(policy.layers), practised)
    found = [p.tree.sum_by_path(own) for p, own in zip(practised, before.logprobs, strict=True)]
    for own, expected in zip(found, path_logprobs(policy, practised), strict=True):
        torch.testing.assert_close(own, expected, rtol=0, atol=0)
