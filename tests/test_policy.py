"""A policy evaluates and acts like plain calls of its model, with any kind of layers."""

import logging
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    Cohere2Config,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3NextConfig,
)

from fakes import (
    BoxWorld,
    demonstrations,
    plain_logprobs,
    practised_trees,
    random_policy,
    rendered,
    rolled_out,
    states_of,
)
from stepagent.inspection import inspect
from stepagent.model import forward
from stepagent.model import reading as reading_module
from stepagent.model.forward import Layers
from stepagent.model.generation import Decoding
from stepagent.model.opening import PolicyError
from stepagent.model.policy import Policy

SIZE = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "initializer_range": 0.3,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 3,
}
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
SHARING = {
    "llama": LlamaConfig(**SIZE),
    "qwen2": Qwen2Config(**SIZE),
    "qwen2 with a sliding layer": Qwen2Config(**SIZE, use_sliding_window=True, **MIXED),
    "qwen3": Qwen3Config(**SIZE),
    "mistral": MistralConfig(**SIZE, sliding_window=None),
    "mistral with a window": MistralConfig(**SIZE, sliding_window=8),
    "phi3": Phi3Config(**SIZE),
    "gemma2": Gemma2Config(**SIZE, **MIXED, query_pre_attn_scalar=16),
    "gemma3": Gemma3TextConfig(**SIZE, **MIXED, query_pre_attn_scalar=16),
    "cohere2": Cohere2Config(**SIZE, **MIXED),
    "granite": GraniteConfig(**SIZE, logits_scaling=4.0),
}
"""Models whose layers compute a tree exactly; the windows are shorter than the demonstrations."""
SEPARATE = {
    "lfm2, convolutional": Lfm2Config(**SIZE, layer_types=["conv", "full_attention"]),
    "qwen3-next, linear": Qwen3NextConfig(
        **SIZE,
        layer_types=["linear_attention", "full_attention"],
        linear_num_value_heads=2,
        linear_num_key_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        num_experts=0,
        mlp_only_layers=[0, 1],
    ),
}
"""Models with layers that carry a state from token to token."""
FAMILIES = {**SHARING, **SEPARATE}
GREEDY = Decoding(max_new_tokens=5, temperature=0.0)


def policy_of(config: PreTrainedConfig, folder: Path) -> Policy:
    torch.manual_seed(1)
    Auto.from_config(config).save_pretrained(folder)
    random_policy().renderer.tokenizer.save_pretrained(folder)
    return Policy.load(folder)


def generate(policy: Policy, state: tuple[int, ...]) -> tuple[int, ...]:
    found = policy.model.generate(  # type: ignore[operator]
        input_ids=torch.tensor([state]),
        attention_mask=torch.ones(1, len(state), dtype=torch.long),
        max_new_tokens=GREEDY.max_new_tokens,
        do_sample=False,
        eos_token_id=policy.renderer.end_id,
        pad_token_id=0,
    )
    return tuple(found[0, len(state) :].tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_and_gradients_equal_those_of_plain_calls(
    family: str, tmp_path: Path
) -> None:
    policy = policy_of(FAMILIES[family], tmp_path)
    trees = [p.tree for p in practised_trees(policy, 2)]
    expected, found = [], []
    for packed in policy.layers.packs(trees):
        assert (len(packed.rows) < packed.num_paths) == (family in SHARING)
        reading = policy.read(packed)
        found.append(reading.logprobs)
        for number in packed.trees:
            tree = trees[number]
            for path in tree.paths:
                state = [tree.tokens[n] for n in tree.ancestors(tree.parents[path[0]])]
                action = [tree.tokens[n] for n in path]
                expected.append(plain_logprobs(policy.model, state, action))
    values, plain = torch.cat(found), torch.cat(expected)
    torch.testing.assert_close(values, plain, rtol=1e-3, atol=1e-3)
    assert plain.std() > 0.1
    weights = torch.linspace(0.1, 1, len(plain))
    parameters = list(policy.model.parameters())
    own, other = (
        torch.autograd.grad((v * weights).sum(), parameters, allow_unused=True)
        for v in (values, plain)
    )
    scale = max(float(g.abs().max()) for g in other if g is not None)
    for a, b in zip(own, other, strict=True):
        if b is not None:
            torch.testing.assert_close(a, b, rtol=0, atol=2e-3 * scale)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_practice_equals_plain_generate(family: str, tmp_path: Path) -> None:
    policy = policy_of(FAMILIES[family], tmp_path)
    own = rendered(policy, [demonstrations()[0], demonstrations()[40]])
    expected = [generate(policy, state) for d in own for state in states_of(d)]
    found = inspect(policy, own, GREEDY, seed=0)
    assert [step.agent_actions[0].token_ids for step in found] == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("family", ["mistral with a window", "gemma3", "lfm2, convolutional"])
def test_greedy_rollouts_equal_plain_generate_in_their_states(family: str, tmp_path: Path) -> None:
    policy = policy_of(FAMILIES[family], tmp_path)
    episodes = rolled_out(policy, BoxWorld(), ["far/0", "near/0", "far/1"], GREEDY, seed=0)
    for episode in episodes:
        for state, action in zip(episode.states, episode.actions, strict=True):
            assert action == generate(policy, tuple(state))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_cannot_share_prefixes_says_so(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="stepagent"):
        policy = policy_of(FAMILIES[family], tmp_path)
    said = [r for r in caplog.messages if "cannot share prefixes" in r]
    assert len(said) == (family in SEPARATE)
    assert policy.layers.shares_prefixes == (family in SHARING)


def test_logits_made_in_parts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = random_policy(scale=3.0)
    (packed,) = policy.layers.packs([p.tree for p in practised_trees(policy, 2)])

    def results() -> list[torch.Tensor]:
        reading, entropies = policy.read_with_entropies(packed)
        loss = (reading.logprobs * torch.linspace(0, 1, len(reading.logprobs))).sum()
        loss = loss + entropies.square().sum()
        return [reading.logprobs, *torch.autograd.grad(loss, list(policy.model.parameters()))]

    whole = results()
    monkeypatch.setattr(reading_module, "MAX_LOGITS", 7 * 320)
    for found, expected in zip(results(), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_last_mlp_computes_what_is_read_and_no_more() -> None:
    policy = random_policy(scale=3.0)
    (packed,) = policy.layers.packs([p.tree for p in practised_trees(policy, 1)])
    (row,) = packed.rows
    computed = list[int]()
    for layer in policy.model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda _, args: computed.append(args[0].shape[1]))
        layer.mlp.gate_proj.register_forward_pre_hook(
            lambda _, args: computed.append(args[0].shape[1])
        )
    policy.path_logprobs(packed)
    every, some = len(row.token_ids), len(row.predictors)
    assert some < every / 2
    # The hook of the MLP itself sees all tokens, that of the product in it those it computes for.
    count = len(policy.model.model.layers)
    assert computed == [every, every] * (count - 1) + [every, some]
    computed.clear()
    policy.model(input_ids=row.token_ids[None])
    assert computed == [every, every] * count


def test_an_mlp_that_an_earlier_layer_shares_computes_for_all_tokens() -> None:
    policy = random_policy(scale=3.0)
    layers = policy.model.model.layers
    layers[0].mlp = layers[-1].mlp
    tree = practised_trees(policy, 1)[0].tree
    (packed,) = policy.layers.packs([tree])
    expected = []
    for path in tree.paths:
        state = [tree.tokens[n] for n in tree.ancestors(tree.parents[path[0]])]
        expected.append(plain_logprobs(policy.model, state, [tree.tokens[n] for n in path]))
    found = policy.read(packed).logprobs
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-3, atol=1e-3)


def test_a_model_that_is_more_than_decoder_and_head_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Layers.logits
    monkeypatch.setattr(Layers, "logits", lambda self, hidden: 2 * plain(self, hidden))
    with pytest.raises(PolicyError, match="its logits differ from decoder"):
        policy_of(SHARING["llama"], tmp_path)


def test_a_model_that_mixes_branches_gets_separate_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "tree_masks", lambda config, row: None)
    policy = policy_of(SHARING["llama"], tmp_path)
    assert not policy.layers.shares_prefixes
    assert not policy.copy("discriminator").layers.shares_prefixes


def test_a_saved_policy_opens_with_equal_weights(tmp_path: Path) -> None:
    policy = random_policy()
    policy.save(tmp_path)
    weights = policy.model.state_dict()
    for name, value in Policy.load(tmp_path).model.state_dict().items():
        assert torch.equal(value, weights[name])


def test_a_trajectory_longer_than_the_context_is_refused_by_name() -> None:
    policy = random_policy()
    policy.model.config.max_position_embeddings = 10
    trajectory = demonstrations()[0]
    with pytest.raises(ValueError, match=f"{trajectory.id}: has .* the model's context is 10"):
        policy.render(trajectory)
    with pytest.raises(PolicyError, match=r"none of 1 trajectories fits: .* context is 10"):
        policy.render_fitting([trajectory])


def test_trajectories_that_fit_are_kept_whole_and_the_others_are_named() -> None:
    policy = random_policy()
    own = demonstrations()[::10]
    lengths = [policy.render(t).num_tokens for t in own]
    limit = policy.model.config.max_position_embeddings = sorted(lengths)[2]
    fitting, too_long = policy.render_fitting(own)
    kept = [t for t, n in zip(own, lengths, strict=True) if n <= limit]
    assert [r.trajectory for r in fitting] == kept
    assert len(kept) + len(too_long) == len(own) > len(kept)
