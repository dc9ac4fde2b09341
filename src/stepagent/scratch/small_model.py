"""Makes a small language model from the demonstrations alone: a first run downloads nothing.

Its initial weights can copy (`induction_heads.py`). The result is an ordinary Hugging Face folder
(config, safetensors weights, tokenizer with a chat template) that `Policy.load` opens.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stepagent.bounds import COUNT, AtLeast, OutOfBounds, check_bounds
from stepagent.scratch.induction_heads import ROPE_THETA, write_copying
from stepagent.types import Trajectory

PAD, USER, ASSISTANT, END = "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    """Size of a model that is made from scratch."""

    vocab_size: int = 2048
    """Most tokens in the byte-level BPE vocabulary."""
    hidden_size: int = 256
    """Width of the residual stream; a multiple of twice the number of heads."""
    num_layers: int = 4
    """Number of transformer layers."""
    num_heads: int = 4
    """Attention heads per layer."""
    context: int = 8192
    """Longest sequence, in tokens."""

    def __post_init__(self) -> None:
        """Raises `OutOfBounds` for values out of range."""
        check_bounds(
            self,
            {
                "vocab_size": COUNT,
                "hidden_size": AtLeast(12),
                "num_layers": COUNT,
                "num_heads": COUNT,
                "context": COUNT,
            },
        )
        if self.hidden_size % (2 * self.num_heads):
            raise OutOfBounds(
                f"hidden_size must be a multiple of twice num_heads, {2 * self.num_heads}, "
                f"not {self.hidden_size}"
            )


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer with the turn markers and chat template of this module."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, USER, ASSISTANT, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _texts(trajectories: Sequence[Trajectory]) -> Iterator[str]:
    for trajectory in trajectories:
        yield trajectory.instruction
        for step in trajectory.steps:
            yield step.observation
            yield step.action


def build_tiny_model(
    trajectories: Sequence[Trajectory], config: TinyConfig, *, seed: int, folder: Path
) -> None:
    """Writes an untrained Llama that can copy, and a tokenizer of the trajectories, to `folder`."""
    tokenizer = train_tokenizer(_texts(trajectories), config.vocab_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=config.hidden_size,
                intermediate_size=8 * config.hidden_size // 3 // 32 * 32,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                num_key_value_heads=config.num_heads,
                max_position_embeddings=config.context,
                rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        write_copying(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
