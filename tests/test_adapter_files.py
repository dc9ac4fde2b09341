"""Adapter folders as PEFT writes them: of every kind that works through a model's layers."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import AutoModelForCausalLM

from fakes import demonstrations, practised_trees, random_policy, rendered
from stepagent.algorithms.sft import SFTConfig, sft
from stepagent.backends.training import OptimizerConfig
from stepagent.commands.export_model import export_model
from stepagent.inspection import path_logprobs
from stepagent.policy import Policy

IDS = torch.tensor([[5, 6, 7, 8, 9, 300, 301, 302]])
ATTENTION = ["q_proj", "v_proj"]
LORA: dict[str, dict[str, Any]] = {
    "plain": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True, "rank_pattern": {"q_proj": 2}},
    "dropout": {"lora_dropout": 0.5},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "embeddings and head": {"target_modules": ["embed_tokens", "lm_head"]},
    "tied": {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    "modules to save": {"modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    "head to save": {"modules_to_save": ["lm_head"]},
    "trainable tokens": {"trainable_token_indices": [300, 301]},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "layers repeated": {"layer_replication": [[0, 2], [1, 2]]},
}
OTHERS: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10, "init_r": 4, "target_r": 2},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "DELORA": {},
    "FOURIERFT": {"n_frequency": 20},
    "GRALORA": {"r": 4, "gralora_k": 2},
    "HRA": {},
    "IA3": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "LOHA": {},
    "LOKR": {},
    "OFT": {"oft_block_size": 8, "r": 0},
    "OSF": {},
    "RANDLORA": {"r": 4},
    "ROAD": {},
    "SHIRA": {"r": 4},
    "TINYLORA": {},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": [300, 301]},
    "UNILORA": {},
    "VBLORA": {"vector_length": 8, "num_vectors": 16, "r": 2},
    "VERA": {"r": 4},
    "WAVEFT": {"n_frequency": 20},
}
KINDS = {f"lora, {name}": (LoraConfig, LORA[name]) for name in LORA} | {
    name.lower(): (PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(name)], OTHERS[name])
    for name in OTHERS
}
CASES = [(name, True) for name in KINDS] + [
    (f"lora, {name}", False)
    for name in ("plain", "embeddings", "head", "modules to save", "trainable tokens")
]


def write_base(folder: Path, *, tied: bool = True) -> Path:
    policy = random_policy(scale=2.0)
    if not tied:
        policy.model.config.tie_word_embeddings = False
        head = policy.model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().flip(0).clone())
    policy.save(folder)
    return folder


def write_adapter(base: Path, folder: Path, config: peft.PeftConfig) -> torch.Tensor:
    """An adapter that has been trained, and what the model says with it."""
    torch.manual_seed(1)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval().save_pretrained(folder)
    found = logits(model)
    assert not torch.allclose(found, logits(AutoModelForCausalLM.from_pretrained(base)), atol=0.01)
    return found


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def trained(policy: Policy) -> Policy:
    config = SFTConfig(optimizer=OptimizerConfig(learning_rate=1e-2), epochs=1, batch_size=2)
    sft(policy, rendered(policy, demonstrations()[:2]), config, seed=0, log=lambda _: None)
    return policy


@pytest.mark.parametrize(("kind", "tied"), CASES)
def test_adapters_of_every_kind_open_train_and_merge_as_peft_has_them(
    kind: str, tied: bool, tmp_path: Path
) -> None:
    config_class, settings = KINDS[kind]
    base, folder = write_base(tmp_path / "base", tied=tied), tmp_path / "adapter"
    given = settings if "target_modules" in settings else {"target_modules": ATTENTION, **settings}
    expected = write_adapter(base, folder, config_class(task_type="CAUSAL_LM", **given))
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    close(logits(again), expected)

    policy = Policy.load(folder)  # the tokenizer is the base's
    close(logits(policy.model), expected)
    trees = practised_trees(policy, 1)
    start = torch.cat(path_logprobs(policy, trees))

    copied = policy.copy("discriminator")
    pairs = list(zip(copied.parameters(), policy.parameters(), strict=True))
    assert pairs and all(torch.equal(p, q) and p is not q for p, q in pairs)
    trained(copied)
    assert not torch.allclose(torch.cat(path_logprobs(copied, trees)), start)
    torch.testing.assert_close(torch.cat(path_logprobs(policy, trees)), start, rtol=0, atol=0)
    copied.save(tmp_path / "copied")
    now = torch.cat(path_logprobs(copied, trees))
    close(torch.cat(path_logprobs(Policy.load(tmp_path / "copied"), trees)), now)
    policy.restore(tmp_path / "copied")
    close(torch.cat(path_logprobs(policy, trees)), now)

    export_model(tmp_path / "copied", out=tmp_path / "merged", merged=True)
    close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), logits(policy.model))
