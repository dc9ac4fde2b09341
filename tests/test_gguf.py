"""A GGUF file becomes a model folder that computes what the file's weights say."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from fakes import demonstrations, random_policy
from stepagent import gguf as own_gguf
from stepagent.commands.models import load_policy, local_model
from stepagent.commands.parsing import UsageError
from stepagent.gguf import GGUFError, convert, converted
from stepagent.policy import Policy

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def interleaved(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of a query or key projection in llama.cpp's order of rotated pairs."""
    rows, columns = weight.shape
    halves = weight.reshape(num_heads, 2, rows // num_heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def write_gguf(policy: Policy, file: Path) -> None:
    """The policy's weights and tokenizer as llama.cpp would have them."""
    config, tokenizer = policy.layers.config, policy.renderer.tokenizer
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = tokenizer.convert_ids_to_tokens(range(config.vocab_size))
    special = set(tokenizer.all_special_ids)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [
            gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL
            for i in range(len(tokens))
        ]
    )
    writer.add_token_merges([" ".join(pair) for pair in bpe["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    for name, value in policy.model.state_dict().items():
        array = value.numpy().astype(np.float32)
        parts = name.removeprefix("model.").removesuffix(".weight").split(".", 2)
        if parts[0] == "layers":
            if parts[2].endswith(("q_proj", "k_proj")):
                array = interleaved(array, config.num_attention_heads)
            writer.add_tensor(
                f"blk.{parts[1]}.{NAMES[parts[2]]}.weight", np.ascontiguousarray(array)
            )
        elif parts[0] in ("embed_tokens", "norm"):
            kept = {"embed_tokens": "token_embd", "norm": "output_norm"}[parts[0]]
            writer.add_tensor(f"{kept}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "tiny.gguf"
    write_gguf(random_policy(scale=2.0), found)
    return found


def test_a_converted_model_computes_and_tokenizes_the_same(file: Path, tmp_path: Path) -> None:
    convert(file, tmp_path / "models" / "tiny")
    found, expected = Policy.load(tmp_path / "models" / "tiny"), random_policy(scale=2.0)
    for trajectory in demonstrations()[:3]:
        ids = [list(s) for s in expected.render(trajectory).states]
        assert [list(s) for s in found.render(trajectory).states] == ids
        with torch.no_grad():
            theirs, ours = (
                p.model(input_ids=torch.tensor(ids[:1])).logits for p in (found, expected)
            )
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)
    assert not hasattr(found.model.config, "quantization_config")


def test_a_file_is_converted_once_and_opened_like_a_folder(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = converted(file)
    assert folder.parent == tmp_path / "cache" / "stepagent" / "models"
    monkeypatch.setattr(own_gguf, "convert", None)  # a second time would fail
    assert local_model(str(file)) == str(folder)
    assert load_policy(str(file)).layers.width == 64


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not a GGUF file"), (b"GGML1234", "not a GGUF file"), (b"GGUF", "cannot be read")],
)
def test_what_is_no_model_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(content)
    with pytest.raises(GGUFError, match=message) as error:
        convert(file, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_cut_off_file_is_one_line(file: Path, tmp_path: Path) -> None:
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(GGUFError, match="cannot be read"):
        convert(file, tmp_path / "out")


@pytest.mark.parametrize("name", ["no/such/folder", "./missing", "missing.gguf/", "a b"])
def test_a_name_that_can_be_nothing_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="expected a Hugging Face model folder, a GGUF file"):
        local_model(name)
