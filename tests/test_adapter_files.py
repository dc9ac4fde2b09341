"""Adapter folders of PEFT, of every kind that acts inside a model's layers."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig

from fakes import demonstrations, practised_trees, random_policy, rendered
from stepagent.algorithms.sft import SFTConfig, sft
from stepagent.commands.export_model import export_model
from stepagent.inspection import path_logprobs
from stepagent.model.adapter_files import AdapterError
from stepagent.model.policy import Policy
from stepagent.model.updates import OptimizerConfig
from stepagent.model.weights import WeightsError

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
    """Writes a trained adapter; returns the model's logits with it."""
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
def test_adapters_of_every_kind_open_train_and_merge_as_in_peft(
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

    if settings.get("ensure_weight_tying"):
        with pytest.raises(AdapterError, match="ensure_weight_tying cannot be copied"):
            policy.copy("discriminator")
        copied = Policy.load(folder)
    else:
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


@pytest.mark.parametrize("to_save", [None, ["embed_tokens", "lm_head"]], ids=["none", "to save"])
def test_a_resized_vocabulary_opens_and_merges(tmp_path: Path, to_save: list[str] | None) -> None:
    for tied in (False,) if to_save else (True, False):
        base, folder = write_base(tmp_path / f"base{tied}", tied=tied), tmp_path / f"adapter{tied}"
        model = AutoModelForCausalLM.from_pretrained(base)
        tokenizer = random_policy().renderer.tokenizer
        rows = len(tokenizer) + 3
        torch.manual_seed(0)
        model.resize_token_embeddings(rows)
        wrapped = peft.get_peft_model(
            model,
            LoraConfig(task_type="CAUSAL_LM", target_modules=ATTENTION, modules_to_save=to_save),
        )
        wrapped.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        policy = Policy.load(folder)
        close(logits(policy.model), logits(wrapped))
        policy.save(tmp_path / f"again{tied}")
        close(logits(Policy.load(tmp_path / f"again{tied}").model), logits(wrapped))
        out = tmp_path / f"merged{tied}"
        export_model(folder, out=out, merged=True)
        merged = AutoModelForCausalLM.from_pretrained(out)
        assert merged.config.vocab_size == rows
        close(logits(merged), logits(wrapped))


def test_experts_of_a_mixture_open_and_merge(tmp_path: Path) -> None:
    base, folder = tmp_path / "base", tmp_path / "adapter"
    tokenizer = random_policy().renderer.tokenizer
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=4,
        max_position_embeddings=512, initializer_range=0.3,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    expected = write_adapter(
        base,
        folder,
        LoraConfig(
            task_type="CAUSAL_LM",
            target_modules=["q_proj"],
            target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        ),
    )
    policy = Policy.load(folder)
    close(logits(policy.model), expected)
    export_model(folder, out=tmp_path / "merged", merged=True)
    close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), expected)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    base, folder = write_base(tmp_path / "base"), tmp_path / "adapter"
    write_adapter(base, folder, LoraConfig(task_type="CAUSAL_LM", target_modules=ATTENTION))
    return folder


def test_an_adapter_with_missing_or_extra_tensors_is_refused_by_their_names(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    policy = Policy.load(adapter)
    names = sorted(tensors)
    save_file({name: tensors[name] for name in names[1:]}, file)
    for attempt in (lambda: Policy.load(adapter), lambda: policy.restore(adapter)):
        with pytest.raises(WeightsError, match=r"1 tensor is missing: .*layers\.0.*lora_A"):
            attempt()
    save_file(
        tensors | {"base_model.model.model.layers.9.up.lora_A.weight": torch.ones(2, 2)}, file
    )
    with pytest.raises(WeightsError, match=r"1 tensor is unexpected: .*layers\.9\.up"):
        Policy.load(adapter)
    save_file(tensors | {names[0]: tensors[names[0]] * float("nan")}, file)
    with pytest.raises(WeightsError, match="1 tensor is not finite"):
        Policy.load(adapter)
    save_file(tensors | {names[0]: tensors[names[0]][:-1].contiguous()}, file)
    with pytest.raises(AdapterError, match="cannot be opened: ") as error:
        Policy.load(adapter)
    assert "\n" not in str(error.value)


def test_a_module_that_is_trained_whole_must_not_be_missing(tmp_path: Path) -> None:
    base, folder = write_base(tmp_path / "base"), tmp_path / "adapter"
    write_adapter(base, folder, LoraConfig(
        task_type="CAUSAL_LM", target_modules=ATTENTION, modules_to_save=["norm"],
    ))  # fmt: skip
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: value for name, value in tensors.items() if "norm" not in name}, file)
    with pytest.raises(AdapterError, match=r"lacks .*norm\.weight"):
        Policy.load(folder)


def test_the_base_of_an_adapter_is_found_next_to_it_or_requested(
    adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = logits(Policy.load(adapter).model)
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.move(tmp_path / "base", moved / "base")
    with pytest.raises(AdapterError) as error:
        Policy.load(adapter)
    assert str(error.value) == (
        f"{adapter}: its base model {tmp_path / 'base'} does not exist; put it there or next to "
        "the adapter, or set its path as base_model_name_or_path in adapter_config.json"
    )
    shutil.move(adapter, moved / "adapter")
    with caplog.at_level(logging.INFO, logger="stepagent"):
        close(logits(Policy.load(moved / "adapter").model), expected)
    assert "is read from" in caplog.text


@pytest.mark.parametrize("config", [
    peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    LoraConfig(task_type="CAUSAL_LM", alora_invocation_tokens=[3]),
], ids=["prompt tuning", "prefix tuning", "aLoRA"])  # fmt: skip
def test_adapters_that_act_outside_the_layers_are_refused(
    config: peft.PeftConfig, tmp_path: Path
) -> None:
    config.base_model_name_or_path = str(write_base(tmp_path / "base"))
    config.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(AdapterError, match="acts outside the model's layers") as error:
        Policy.load(tmp_path / "adapter")
    assert "\n" not in str(error.value)


def test_an_adapter_of_an_unknown_kind_is_one_printable_line(adapter: Path) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"peft_type": "\x1b[31mNEW"}))
    with pytest.raises(AdapterError, match="PEFT knows no adapters of kind") as error:
        Policy.load(adapter)
    assert str(error.value).isprintable()


def test_a_git_lfs_pointer_in_place_of_an_adapter_is_recognized(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(WeightsError, match=r"adapter_model\.safetensors: is a Git LFS pointer"):
        Policy.load(adapter)
