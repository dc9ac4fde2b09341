"""GGUF files are converted to model folders that compute the same."""

import json
import multiprocessing
import os
import signal
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from fakes import demonstrations, random_policy
from stepagent.commands.models import load_policy, local_model
from stepagent.commands.parsing import UsageError
from stepagent.model import gguf as own_gguf
from stepagent.model.gguf import GGUFError, convert, converted
from stepagent.model.policy import Policy

FORK = multiprocessing.get_context("fork")  # a new interpreter would load PyTorch first

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


def write_gguf(
    policy: Policy, file: Path, *, part_size: int = 0, without: tuple[str, ...] = ()
) -> None:
    """Writes the policy's weights and tokenizer as a GGUF file, in parts of `part_size` tensors."""
    config, tokenizer = policy.layers.config, policy.renderer.tokenizer
    writer = gguf.GGUFWriter(str(file), "llama", split_max_tensors=part_size)
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
    for tensors in writer.tensors:
        for name in without:
            tensors.pop(name, None)
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
def test_a_file_without_a_model_is_an_error_of_one_line(
    content: bytes, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(content)
    with pytest.raises(GGUFError, match=message) as error:
        convert(file, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_truncated_file_is_an_error_of_one_line(file: Path, tmp_path: Path) -> None:
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(GGUFError, match="cannot be read"):
        convert(file, tmp_path / "out")


def logits(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = policy.model(input_ids=torch.tensor([[5, 6, 7, 300]])).logits
    return found


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    write_gguf(random_policy(scale=2.0), tmp_path / "tiny.gguf", part_size=8)
    found = sorted(tmp_path.glob("tiny-0000?-of-00003.gguf"))
    assert len(found) == 3
    return found


@pytest.mark.parametrize("given", [0, 2])
def test_a_split_model_is_read_from_all_its_parts(
    parts: list[Path], given: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = Path(local_model(str(parts[given])))
    torch.testing.assert_close(
        logits(Policy.load(folder)), logits(random_policy(scale=2.0)), rtol=1e-3, atol=1e-3
    )
    assert [f.name for f in folder.parent.iterdir()] == [folder.name]
    assert folder.name.startswith("tiny-") and "00001" not in folder.name
    assert converted(parts[1]) == folder


def test_a_part_without_the_others_is_refused_with_their_names(
    parts: list[Path], tmp_path: Path
) -> None:
    parts[1].unlink()
    with pytest.raises(GGUFError, match=r"1 of the model's 3 parts missing: tiny-00002-of-00003"):
        convert(parts[0], tmp_path / "out")
    alone = parts[0].rename(tmp_path / "alone.gguf")
    with pytest.raises(GGUFError, match=r"one of the 3 parts .* expected a name that ends in"):
        convert(alone, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parts_that_are_mixed_up_are_refused(parts: list[Path], tmp_path: Path) -> None:
    parts[2].write_bytes(parts[1].read_bytes())
    with pytest.raises(GGUFError, match="its header says part 2; expected 3"):
        convert(parts[0], tmp_path / "out")


def test_a_file_with_missing_tensors_is_refused_with_their_names(tmp_path: Path) -> None:
    file = tmp_path / "holes.gguf"
    write_gguf(random_policy(), file, without=("blk.0.attn_q.weight", "blk.1.ffn_up.weight"))
    with pytest.raises(GGUFError) as error:
        convert(file, tmp_path / "out")
    assert str(error.value).startswith(
        f"{file}: 2 tensors are missing: model.layers.0.self_attn.q_proj.weight, "
        "model.layers.1.mlp.up_proj.weight; "
    )
    assert not (tmp_path / "out").exists()


def test_scaled_rotary_frequencies_are_refused_since_they_would_not_be_read(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = gguf.GGUFWriter.write_header_to_file
    scale = np.ones(8, dtype=np.float32)

    def with_scale(self: gguf.GGUFWriter, path: Path | None = None) -> None:
        self.add_tensor("rope_freqs.weight", scale)
        write(self, path)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", with_scale)
    write_gguf(random_policy(), file)
    convert(file, tmp_path / "one")
    scale[3] = 8
    write_gguf(random_policy(), file)
    with pytest.raises(GGUFError, match="scales its rotary frequencies"):
        convert(file, tmp_path / "eight")


def test_errors_of_a_pointer_and_of_a_name_with_escapes_are_printable(tmp_path: Path) -> None:
    file = tmp_path / "red\x1b[31m.gguf"
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(GGUFError, match="is a Git LFS pointer") as error:
        convert(file, tmp_path / "out")
    assert str(error.value).isprintable()


def test_two_processes_that_convert_a_file_at_once_both_get_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    own = FORK.Barrier(2)
    said: SimpleQueue[Path] = FORK.SimpleQueue()

    def together(*given: Path) -> None:
        own.wait(60)  # neither starts before both have seen that there is no folder
        convert(*given)

    monkeypatch.setattr(own_gguf, "convert", together)
    both = [FORK.Process(target=lambda: said.put(converted(file))) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    folder = said.get()
    assert said.get() == folder
    assert list((tmp_path / "cache" / "stepagent" / "models").iterdir()) == [folder]
    assert Policy.load(folder).layers.width == 64


def test_a_conversion_that_is_killed_leaves_nothing_that_is_taken_for_a_model(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save = PreTrainedModel.save_pretrained

    def killed(self: PreTrainedModel, folder: Path) -> None:
        save(self, folder)
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedModel, "save_pretrained", killed)
        process = FORK.Process(target=converted, args=(file,))
        process.start()
        process.join(120)
    assert process.exitcode == -signal.SIGKILL
    folder = converted(file)
    assert (folder / "tokenizer.json").is_file()
    assert Policy.load(folder).layers.width == 64


@pytest.mark.parametrize("name", ["no/such/folder", "./missing", "missing.gguf/", "a b"])
def test_a_name_that_is_neither_path_nor_hub_id_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="expected a Hugging Face model folder, a GGUF file"):
        local_model(name)


def test_a_pipe_is_refused_as_a_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.gguf")
    with pytest.raises(GGUFError, match=r"model.gguf: is a pipe"):
        convert(tmp_path / "model.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()
