"""Inverse reflection in states of the agent's own episodes."""

import json
from dataclasses import replace
from pathlib import Path

import torch

from fakes import demonstrations, in_float64, random_policy, rendered
from stepagent.inspection import path_logprobs, rollout_tree, step_tree
from stepagent.model.policy import Policy
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
