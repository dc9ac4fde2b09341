"""The model made from scratch: it can copy before training, and is otherwise ordinary."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from fakes import demonstrations
from stepagent.model.policy import Policy
from stepagent.model.prefix_tree import ROOT, PrefixTree
from stepagent.scratch.induction_heads import ROPE_THETA, write_copying
from stepagent.scratch.small_model import TinyConfig, build_tiny_model

VOCAB = 2048


def fresh(
    seed: int, hidden: int = 192, layers: int = 4, theta: float = ROPE_THETA
) -> LlamaForCausalLM:
    """A Llama with random weights, without induction heads."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=8192,
            rope_parameters={"rope_type": "default", "rope_theta": theta},
            tie_word_embeddings=True,
        )
    ).eval()


@torch.no_grad()
def share_copied(model: LlamaForCausalLM, length: int, seed: int) -> Tensor:
    """(8,) probability of the token that followed an earlier occurrence of the last token."""
    generator = torch.Generator().manual_seed(seed)
    texts = torch.stack([torch.randperm(VOCAB, generator=generator)[:length] for _ in range(8)])
    rows = torch.arange(8)
    places = torch.randint(1, length - 2, (8,), generator=generator)
    texts = torch.cat([texts, texts[rows, places, None]], dim=1)
    return model(texts).logits[:, -1].softmax(-1)[rows, texts[rows, places + 1]]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("hidden", "layers"), [(192, 4), (256, 4), (128, 2)])
def test_a_new_model_predicts_the_token_that_followed_last_time(
    seed: int, hidden: int, layers: int
) -> None:
    model = fresh(seed, hidden, layers)
    assert share_copied(model, 30, seed).max() < 0.01
    write_copying(model)
    for length in (10, 100, 1000):
        # Chance is 0.0005. With more layers, the last one adds the average of the context.
        assert share_copied(model, length, seed).mean() > 0.15, length


def test_a_smaller_rotary_base_could_not_attend_far_back() -> None:
    shares = []
    for theta in (1e4, ROPE_THETA):
        model = fresh(0, layers=2, theta=theta)
        write_copying(model)
        shares.append(share_copied(model, 1000, 0).mean())
    assert shares[0] < 0.5 < shares[1]


@torch.no_grad()
def test_the_last_layer_raises_tokens_of_the_context() -> None:
    model = fresh(0)
    write_copying(model)
    text = torch.randperm(VOCAB)[:20]
    lead = []
    for _ in range(2):
        logits = model(text[None]).logits[0, -1]
        lead.append(float(logits[text[:-1]].mean() - logits.mean()))
        model.model.layers[-1].self_attn.o_proj.weight.zero_()
    assert lead[0] > lead[1] + 0.5


def test_every_weight_of_a_new_model_gets_a_gradient() -> None:
    model = fresh(0)
    write_copying(model)
    ids = torch.randint(VOCAB, (2, 50))
    model(ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_model_without_room_for_the_circuit_is_unchanged() -> None:
    model = fresh(0, layers=1)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    write_copying(model)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_the_folder_is_an_ordinary_one_and_the_same_for_the_same_seed(tmp_path: Path) -> None:
    config = TinyConfig(vocab_size=400, hidden_size=96)
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        build_tiny_model(demonstrations(), config, seed=seed, folder=tmp_path / name)
    weights = {n: (tmp_path / n / "model.safetensors").read_bytes() for n in ("one", "same")}
    assert weights["one"] == weights["same"]
    assert weights["one"] != (tmp_path / "other" / "model.safetensors").read_bytes()

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one").eval()
    policy = Policy.load(tmp_path / "one")
    start, end = [7, 8, 9, 10, 11], [8, 9, 300]
    tree = PrefixTree()
    tree.add_path(tree.add(ROOT, start)[-1], end)
    (packed,) = policy.layers.packs([tree])
    with torch.no_grad():
        logits = model(torch.tensor([[*start, *end]])).logits[0, len(start) - 1 : -1]
        found = policy.read(packed).logprobs
    expected = logits.log_softmax(-1)[torch.arange(len(end)), torch.tensor(end)]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert expected[1] > -1.0  # after 7 8 9 10 11 8 comes 9


def test_building_a_model_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_tiny_model(demonstrations(), TinyConfig(vocab_size=300), seed=0, folder=tmp_path)
    assert torch.equal(torch.rand(3), expected)
