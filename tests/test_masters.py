"""Training in bfloat16 keeps updates that bfloat16 would round away, and saves float32 weights."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fakes import practised_trees, random_policy
from stepagent.model.device import ComputeConfig
from stepagent.model.lora import LoRAConfig
from stepagent.model.masters import Masters, cast_frozen
from stepagent.model.policy import Policy
from stepagent.model.updates import OptimizerConfig, Updater

HALF = ComputeConfig(precision="bfloat16")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    random_policy().save(folder)
    return folder


def test_small_updates_add_up_where_bfloat16_alone_would_lose_them() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight.data[:] = 1.0
    masters = Masters(list(layer.parameters()))
    for _ in range(8):
        with torch.no_grad():
            masters.weights[0] += 2**-10  # bfloat16 has steps of 2**-7 after 1
        masters.publish()
    assert layer.weight.dtype == torch.bfloat16
    assert layer.weight.item() == 1 + 2**-7
    assert masters.weights[0].item() == 1 + 2**-7


def test_gradients_of_several_parts_are_summed_in_float32() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    masters = Masters([weight])
    for part in (256.0, 1.0, 1.0):  # 257 has no bfloat16
        (weight * torch.tensor([part], dtype=torch.bfloat16)).sum().backward()
    assert weight.grad is None
    assert masters.weights[0].grad is not None
    assert masters.weights[0].grad.item() == 258


@pytest.mark.parametrize("rank", [0, 4])
def test_saved_weights_are_the_masters(base: Path, rank: int, tmp_path: Path) -> None:
    policy = Policy.load(base, HALF, LoRAConfig(rank=rank))
    with torch.no_grad():
        for master in policy.parameters():
            master += 1e-6
    policy.layers.publish()
    policy.save(tmp_path / "saved")
    again = Policy.load(tmp_path / "saved", ComputeConfig(precision="float32"))
    for master, saved in zip(policy.parameters(), again.parameters(), strict=True):
        assert saved.dtype == torch.float32
        assert torch.equal(master, saved)
    halves = [p for p in policy.model.parameters() if p.requires_grad]
    assert all(p.dtype == torch.bfloat16 for p in halves)


@pytest.mark.parametrize("rank", [0, 4])
def test_a_copy_and_a_restored_policy_have_the_same_masters(
    base: Path, rank: int, tmp_path: Path
) -> None:
    policy = Policy.load(base, HALF, LoRAConfig(rank=rank))
    with torch.no_grad():
        for master in policy.parameters():
            master += 1e-6
    policy.layers.publish()
    start = [p.detach().clone() for p in policy.parameters()]
    policy.save(tmp_path / "start")
    copy = policy.copy("discriminator")
    assert all(torch.equal(a, b) for a, b in zip(start, copy.parameters(), strict=True))
    with torch.no_grad():
        for master in policy.parameters():
            master.zero_()
    policy.layers.publish()
    assert all(torch.equal(a, b) for a, b in zip(start, copy.parameters(), strict=True))
    policy.restore(tmp_path / "start")
    assert all(torch.equal(a, b) for a, b in zip(start, policy.parameters(), strict=True))
    trees = [p.tree for p in practised_trees(policy)]
    for one, two in zip(policy.layers.packs(trees), copy.layers.packs(trees), strict=True):
        torch.testing.assert_close(policy.read(one).logprobs, copy.read(two).logprobs)


@pytest.mark.parametrize("rank", [0, 4])
def test_an_update_in_bfloat16_is_close_to_one_in_float32(base: Path, rank: int) -> None:
    moved = []
    for precision in ("float32", "bfloat16"):
        policy = Policy.load(base, ComputeConfig(precision=precision), LoRAConfig(rank=rank))  # type: ignore[arg-type]
        trees = [p.tree for p in practised_trees(policy)]
        start = [p.detach().clone() for p in policy.parameters()]
        config = OptimizerConfig(learning_rate=1e-3, warmup_share=0.0, weight_decay=0.0)
        updater = Updater(policy.parameters(), config, 10)
        for _ in range(3):
            updater.update(
                policy.layers,
                lambda policy=policy, trees=trees: (  # type: ignore[misc]
                    (-policy.read(packed).logprobs.sum() / 100, {})
                    for packed in policy.layers.packs(trees)
                ),
            )
        changes = [(a - b).flatten() for a, b in zip(policy.parameters(), start, strict=True)]
        moved.append(torch.cat(changes))
    assert torch.cosine_similarity(moved[0], moved[1], dim=0) > 0.9


def test_the_frequencies_of_rotary_embeddings_stay_exact() -> None:
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    cast_frozen(model)
    assert model.dtype == torch.bfloat16
    assert before
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])
