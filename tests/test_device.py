"""Precision, token budgets, steps repeated with fewer tokens, FlexAttention's mask of a tree."""

from typing import Literal

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from fakes import BoxWorld, demonstrations, practised_trees, random_policy, rendered, with_budget
from stepagent.algorithms.sft import SFTConfig, sft
from stepagent.inspection import path_logprobs
from stepagent.model import device
from stepagent.model.attention_masks import BUCKET, filled_up, tree_masks
from stepagent.model.device import (
    HEADROOM,
    MAX_TOKEN_BUDGET,
    MIN_HALF_WIDTH,
    ComputeConfig,
    OutOfMemory,
    beside_environments,
    bfloat16_gain,
    fitting_tokens,
)
from stepagent.model.forward import MIN_TOKEN_BUDGET, Layers
from stepagent.model.generation import Decoding
from stepagent.model.policy import Policy
from stepagent.model.prefix_tree import Pack, Row
from stepagent.model.updates import Metrics, OptimizerConfig
from stepagent.rollout import _Batch, rollout


def test_the_token_budget_is_what_fits_into_free_memory() -> None:
    # 0.8 of 10,000,000 bytes without 1,000,000, at 1,000 bytes each: 7,000, in whole buckets 6,912.
    assert HEADROOM == 0.8
    assert fitting_tokens(10_000_000, 1_000_000, 1000.0) == 54 * 128
    assert fitting_tokens(10_000, 1_000_000, 1000.0) == 128
    assert fitting_tokens(10**12, 0, 1.0) == MAX_TOKEN_BUDGET


@pytest.mark.parametrize(
    ("units", "gain", "width", "said"),
    [
        ({"avx512_bf16": True}, 3.96, 576, "bfloat16, since its matrix products run 4.0 times"),
        ({"amx_bf16": True}, 2.0, 576, "bfloat16, since its matrix products run 2.0 times"),
        ({"amx_bf16": True}, 1.2, 576, "float32, since its matrix products run 1.2 times"),
        ({"avx512_bf16": False}, 4.0, 576, "float32, since this processor has no bfloat16 units"),
        ({"avx512_bf16": True}, 4.0, 192, "float32, since the model is too small"),
    ],
)
def test_auto_takes_bfloat16_where_the_processor_gains(
    units: dict[str, bool], gain: float, width: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    monkeypatch.setattr(device, "bfloat16_gain", lambda: gain)
    assert str(ComputeConfig(device="cpu").chosen(width)).startswith(said)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_stated_precision_is_taken(precision: Literal["float32", "bfloat16"]) -> None:
    chosen = ComputeConfig(device="cpu", precision=precision).chosen(8)
    assert str(chosen) == f"{precision}, as asked for"


def test_the_gain_of_bfloat16_is_measured() -> None:
    assert 0.01 < bfloat16_gain() < 100


def test_a_small_model_leaves_the_cores_to_the_environments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with beside_environments(MIN_HALF_WIDTH - 1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with beside_environments(MIN_HALF_WIDTH):
            assert torch.get_num_threads() == 2
        used = []
        play = _Batch.play

        def counted(batch: _Batch) -> None:
            used.append(torch.get_num_threads())
            play(batch)

        monkeypatch.setattr(_Batch, "play", counted)
        decoding = Decoding(max_new_tokens=4)
        episodes = list(rollout(random_policy(), BoxWorld(), ["near/11"], decoding, seed=0))
        assert len(episodes) == 1
        assert set(used) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def small_memory(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Makes rows of more than `limit` tokens run out of memory."""
    plain = Layers.row_hidden

    def row_hidden(self: Layers, row: Row) -> torch.Tensor:
        if len(row.token_ids) > limit:
            raise torch.OutOfMemoryError("too much")
        return plain(self, row)

    monkeypatch.setattr(Layers, "row_hidden", row_hidden)


def trained(policy: Policy) -> tuple[list[Metrics], list[torch.Tensor]]:
    logged: list[Metrics] = []
    own = rendered(policy, demonstrations()[40:48])
    config = SFTConfig(optimizer=OptimizerConfig(learning_rate=1e-3), batch_size=4, epochs=1)
    sft(policy, own, config, seed=0, log=logged.append)
    return logged, [p.detach() for p in policy.parameters()]


def test_a_step_that_runs_out_of_memory_is_repeated_with_half_the_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected, weights = trained(with_budget(random_policy(), 10_000))
    policy = with_budget(random_policy(), 1600)
    trees = practised_trees(policy)
    plain = torch.cat(path_logprobs(policy, trees))
    small_memory(monkeypatch, 150)
    found, own = trained(policy)
    assert policy.layers.token_budget == 100
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-4)
    torch.testing.assert_close(own, weights, rtol=1e-3, atol=1e-4)
    reading = with_budget(random_policy(), 1600)
    torch.testing.assert_close(torch.cat(path_logprobs(reading, trees)), plain)
    assert reading.layers.token_budget == 100


def test_a_trajectory_that_never_fits_is_an_error_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = with_budget(random_policy(), 512)
    small_memory(monkeypatch, 10)
    with pytest.raises(OutOfMemory, match=f"out of memory with {MIN_TOKEN_BUDGET} tokens at once"):
        trained(policy)


def a_pack() -> Pack:
    policy = with_budget(random_policy(), 10_000)
    (packed,) = policy.layers.packs([p.tree for p in practised_trees(policy, 2)])
    return packed


@pytest.mark.parametrize("window", [None, 7])
def test_flex_attention_with_the_trees_block_mask_equals_the_dense_mask(
    window: int | None,
) -> None:
    (row,) = a_pack().rows
    policy = random_policy()
    config = policy.layers.config
    config._attn_implementation = "flex_attention"
    if window is not None:
        config.layer_types, config.sliding_window = ["sliding_attention"], window
    filled, length = filled_up(row), len(row.token_ids)
    assert len(filled.token_ids) % BUCKET == 0 and len(filled.token_ids) > length
    block = tree_masks(config, filled)
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, len(filled.token_ids), 16)
    found = flex_attention(query, key, value, block_mask=block)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query[:, :, :length], key[:, :, :length], value[:, :, :length], row.mask(window)
    )
    torch.testing.assert_close(found[:, :, :length], expected, rtol=1e-4, atol=1e-5)
    assert (~row.mask(window)).any()


def test_no_token_attends_to_the_padding_of_a_row() -> None:
    (row,) = a_pack().rows
    filled, length = filled_up(row), len(row.token_ids)
    torch.testing.assert_close(filled.mask()[..., :length, :length], row.mask())
    rest = filled.mask()[0, 0, length:]
    assert torch.equal(rest, torch.eye(len(filled.token_ids), dtype=torch.bool)[length:])
