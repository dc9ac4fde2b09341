"""Sharded weights: the same results as with whole ones, however unequal the shares."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sharded
from fakes import random_policy
from stepagent.model.policy import Policy
from stepagent.model.weights import WeightsError
from test_ranks import TESTS, succeed, torchrun

WEIGHTS = "alone/units/**/model.safetensors"
PROGRAM = (str(TESTS / "sharded.py"),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes saved what they found."""
    folder = tmp_path_factory.mktemp("sharded")
    random_policy(scale=4.0).save(folder / "found-base")
    succeed(torchrun(2, "all", str(folder / "found"), module=PROGRAM))
    return folder


@pytest.fixture(scope="module")
def by_both(folder: Path) -> list[Any]:
    return [torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in range(2)]


def test_learners_find_the_same_as_in_one_process(by_both: list[Any]) -> None:
    alone = sharded.learners()
    for both in by_both:
        found = both["learners"]
        assert found.keys() == alone.keys()
        for name, (logged, weights, _) in alone.items():
            for row, other in zip(found[name][0], logged, strict=True):
                assert row == pytest.approx(other, rel=1e-10, abs=1e-10), name
            torch.testing.assert_close(found[name][1], weights, rtol=1e-10, atol=1e-10)


def test_three_packs_against_one_give_the_gradient_of_all(by_both: list[Any]) -> None:
    alone = sharded.uneven()
    assert any(bool(gradient.abs().max() > 1) for gradient in alone)
    for found in by_both:
        torch.testing.assert_close(found["uneven"], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_with_lora_all_is_equal_to_the_last_bit(
    folder: Path, by_both: list[Any], precision: str
) -> None:
    found = by_both[0]["stages"]
    whole, shards = found[precision, 4, False], found[precision, 4, True]
    assert [s.agent_actions for s in whole[0]] == [s.agent_actions for s in shards[0]]
    assert whole[2] == shards[2]
    for number in (1, 3, 4, 5):
        assert all(torch.equal(a, b) for a, b in zip(whole[number], shards[number], strict=True))
    names = [f"found-{precision}-4-{shard}" for shard in (False, True)]
    saved = [folder / name / "adapter_model.safetensors" for name in names]
    assert saved[0].read_bytes() == saved[1].read_bytes()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_whole_model_practises_and_reads_the_same(
    folder: Path, by_both: list[Any], precision: str
) -> None:
    found = by_both[0]["stages"]
    whole, shards = found[precision, 0, False], found[precision, 0, True]
    assert [s.agent_actions for s in whole[0]] == [s.agent_actions for s in shards[0]]
    assert all(torch.equal(a, b) for a, b in zip(whole[1], shards[1], strict=True))
    # Only the order of sums differs; the optimizer makes more of it.
    atol = 1e-3 if precision == "float32" else 0.5
    for number in (3, 4):
        torch.testing.assert_close(whole[number], shards[number], rtol=0, atol=atol)
    # What was saved is what the policy was, in float32, and the copy has taken it over.
    assert all(torch.equal(a, b) for a, b in zip(shards[3], shards[5], strict=True))
    saved = folder / f"found-{precision}-0-True"
    weights = load_file(saved / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert len(Policy.load(saved).parameters()) == len(weights)


def test_a_killed_run_goes_on_and_ends_as_one_process_does_with_whole_weights(
    tmp_path: Path,
) -> None:
    arguments = str(tmp_path / "run"), "implicit-round1=1"
    succeed(torchrun(2, "run", *arguments, module=PROGRAM, restarts=1))
    assert (tmp_path / "run.killed").exists()
    sharded.run(str(tmp_path / "alone"))
    names = sorted(file.relative_to(tmp_path / "alone") for file in tmp_path.glob(WEIGHTS))
    assert len(names) > 8
    for name in names:
        ours, alone = (load_file(tmp_path / folder / name) for folder in ("run", "alone"))
        torch.testing.assert_close(ours, alone, rtol=0, atol=1e-3)
    ours, alone = (
        json.loads((tmp_path / folder / "results.json").read_text()) for folder in ("run", "alone")
    )
    assert [row["mean"] for row in ours] == pytest.approx([row["mean"] for row in alone], abs=1e-3)


def test_what_cannot_be_sharded_is_refused_in_one_line() -> None:
    policy = random_policy()
    policy.layers.shares_prefixes = False
    with pytest.raises(WeightsError, match=r"--compute\.shard: expected layers that can share"):
        policy.layers.shard(sharded.CPU)
