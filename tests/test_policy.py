"""A policy opens what it can follow, and says in one line what it cannot."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from fakes import demonstrations, random_policy
from stepagent.policy import Policy

SIZE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def folder_of(config: PreTrainedConfig, folder: Path) -> Path:
    Auto.from_config(config).save_pretrained(folder)
    random_policy().renderer.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**SIZE, vocab_size=400, sliding_window=8),
        Qwen2Config(
            **SIZE, vocab_size=400, use_sliding_window=True, sliding_window=8, max_window_layers=1
        ),
    ],
    ids=["mistral with a window", "qwen2 with one sliding layer"],
)
def test_layers_that_cannot_follow_a_tree_are_refused(
    config: PreTrainedConfig, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="sliding_attention; expected full attention only"):
        Policy.load(folder_of(config, tmp_path))


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZE, vocab_size=400),
        MistralConfig(**SIZE, vocab_size=400, sliding_window=None),
        Qwen2Config(**SIZE, vocab_size=400),
    ],
    ids=["llama", "mistral without a window", "qwen2"],
)
def test_full_attention_is_opened_whatever_the_family(
    config: PreTrainedConfig, tmp_path: Path
) -> None:
    assert Policy.load(folder_of(config, tmp_path)).width == 16


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
