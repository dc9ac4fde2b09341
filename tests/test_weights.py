"""Models open with all their weights, or an error of one line says which are missing."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from fakes import random_policy
from stepagent.commands.models import open_renderer
from stepagent.model.opening import PolicyError
from stepagent.model.policy import Policy
from stepagent.model.weights import WeightsError, open_model

Tensors = dict[str, torch.Tensor]
NORM = "model.norm.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    random_policy().save(tmp_path / "model")
    return tmp_path / "model"


def change(model: Path, edit: Callable[[Tensors], object]) -> None:
    tensors = load_file(model / "model.safetensors")
    edit(tensors)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def without_two(tensors: Tensors) -> None:
    del tensors["model.layers.0.mlp.up_proj.weight"], tensors["model.embed_tokens.weight"]


EDITS: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "two tensors missing": (
        without_two,
        "2 tensors are missing: model.embed_tokens.weight, model.layers.0.mlp.up_proj.weight;",
    ),
    "a bias that the config does not know": (
        lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}),
        "1 tensor is unexpected: model.layers.0.self_attn.q_proj.bias",
    ),
    "a different shape": (
        lambda t: t.update({NORM: torch.ones(63)}),
        r"1 tensor is of a different shape .*model.norm.weight is \(63,\), expected \(64,\)",
    ),
    "NaN": (lambda t: t[NORM].fill_(float("nan")), "1 tensor is not finite .*: model.norm.weight"),
    "infinity": (lambda t: t[NORM].fill_(float("inf")), "1 tensor is not finite"),
}


@pytest.mark.parametrize("name", EDITS)
def test_missing_and_wrong_weights_are_named(name: str, model: Path) -> None:
    edit, message = EDITS[name]
    policy = Policy.load(model)
    before = {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    change(model, edit)
    for attempt in (lambda: Policy.load(model), lambda: policy.restore(model)):
        with pytest.raises(WeightsError, match=message) as error:
            attempt()
        assert str(error.value).startswith(f"{model}: ")
        assert str(error.value).isprintable()
    assert all(torch.equal(p, before[n]) for n, p in policy.model.named_parameters())


def test_an_extra_head_of_another_trainer_is_accepted(model: Path) -> None:
    change(model, lambda t: t.update({"v_head.weight": torch.ones(1, 64)}))
    Policy.load(model)


def test_a_missing_or_truncated_shard_is_an_error_of_one_line(model: Path) -> None:
    (model / "model.safetensors").unlink()
    random_policy().model.save_pretrained(model, max_shard_size="100KB")
    shards = sorted(model.glob("model-*.safetensors"))
    assert len(shards) > 2
    Policy.load(model)
    whole = shards[1].read_bytes()
    for broken in (whole[:-100], b"", None):
        shards[1].unlink()
        if broken is not None:
            shards[1].write_bytes(broken)
        with pytest.raises(WeightsError, match="cannot open the model: ") as error:
            Policy.load(model)
        assert "\n" not in str(error.value)
        shards[1].write_bytes(whole)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_git_lfs_pointer_is_recognized(file: str, model: Path) -> None:
    (model / file).write_text(POINTER)
    with pytest.raises(WeightsError, match=f"{file}: is a Git LFS pointer, .* `git lfs pull`"):
        Policy.load(model)


def test_a_pointer_to_a_copy_in_another_format_is_ignored(model: Path) -> None:
    (model / "pytorch_model.bin").write_text(POINTER)
    (model / "consolidated.safetensors").write_text(POINTER)
    Policy.load(model)


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(model: Path) -> None:
    policy = random_policy()
    rows = len(policy.renderer.tokenizer)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(model)
    with pytest.raises(PolicyError) as error:
        Policy.load(model)
    assert str(error.value) == (
        f"{model}: its tokenizer has {rows + 2} tokens, but its model embeddings for only {rows}; "
        "expected the model's own tokenizer"
    )
    policy.model.resize_token_embeddings(rows + 50)
    policy.model.save_pretrained(model)
    Policy.load(model)  # more embeddings than tokens are common


def test_escape_sequences_in_tensor_names_do_not_reach_the_terminal(model: Path) -> None:
    change(model, lambda t: t.update({"model.\x1b[31mred\x1b[0m": torch.ones(1)}))
    with pytest.raises(WeightsError, match="1 tensor is unexpected") as error:
        Policy.load(model)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": "x"},
        {"num_hidden_layers": 10**9},
        {"rms_norm_eps": "a"},
        {"rope_parameters": [1]},
        {"eos_token_id": "x"},
        {"max_position_embeddings": "x"},
        {"max_position_embeddings": -1},
        {"layer_types": ["a"]},
        {"num_attention_heads": 0},
        {"dtype": "x"},
        {"quantization_config": 5},
    ],
)
def test_a_malformed_config_is_an_error_of_one_line(values: dict[str, object], model: Path) -> None:
    config = model / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | values))
    openers: tuple[Callable[[], object], ...] = (
        lambda: open_model(str(model), torch.float32),
        lambda: open_renderer(str(model)),
    )
    for opens in openers:
        with pytest.raises(WeightsError) as failed:
            opens()
        message = str(failed.value)
        assert message.startswith(f"{model}: cannot open the model: ")
        assert "\n" not in message and not message.endswith(":")
    if "num_hidden_layers" in values:
        assert "num_hidden_layers" in message


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "generation_config.json"])
def test_a_pipe_among_the_files_of_a_model_is_refused(name: str, model: Path) -> None:
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    for opens in (lambda: Policy.load(model), lambda: open_renderer(str(model))):
        with pytest.raises(
            WeightsError, match=f"{name}: is a pipe or a device; expected a regular"
        ):
            opens()


def test_missing_weights_are_reported_without_the_table_of_transformers(
    model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change(model, without_two)
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_warning()
    try:
        with pytest.raises(WeightsError):
            open_model(str(model), torch.float32)
        assert transformers_logging.get_verbosity() == transformers_logging.WARNING
    finally:
        transformers_logging.set_verbosity(before)
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_quantized_weights_whose_config_does_not_say_how_are_refused(tmp_path: Path) -> None:
    random_policy().save(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if n.endswith("q_proj.weight"))
    tensors[name] = (tensors[name] * 100).to(torch.int8)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="1 tensor is quantized, but its config does not say"):
        Policy.load(tmp_path)
