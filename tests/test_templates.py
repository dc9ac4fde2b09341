"""Renders dialogues by the chat templates of six model families, token by token.

The templates are short versions of the families' published formats; the tokenizers are small ones
with the families' special tokens.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from stepagent.rendering.renderer import Renderer
from stepagent.types import Step, Trajectory

SIMPLE = Trajectory(
    id="a",
    task="t",
    instruction="Fetch the hat.",
    steps=(
        Step(observation="The red box holds a cup. ", action="go on"),
        Step(observation="The blue box holds a hat.\n", action="open blue box"),
        Step(observation="You find a hat.", action="done"),
    ),
)
REACT = SIMPLE.model_copy(
    update={
        "steps": tuple(
            step.model_copy(update={"thought": f"I see: {step.observation.strip()}"})
            for step in SIMPLE.steps
        )
    }
)


@dataclass(frozen=True)
class Family:
    """A chat format: its template, and the expected rendering of the dialogue `SIMPLE`."""

    template: str
    special: tuple[str, ...]
    states: tuple[str, ...]
    """The first two states, written by hand."""
    end: str
    is_stable: bool = True
    metaspace: bool = False
    """Whether the tokenizer adds a space before the first word, like SentencePiece."""


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if loop.last and m.role == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
LLAMA3 = (
    "{{ '<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{{ 'Cutting Knowledge Date: December 2023\nToday Date: ' }}"
    "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}"
    "{{ '\n\n<|eot_id|>' }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content|trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}"
)
GEMMA3 = (
    "{{ '<bos>' }}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ m.content|trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

FIRST, SECOND = "Fetch the hat.\n\nThe red box holds a cup.", "The blue box holds a hat."
FAMILIES = {
    "smollm2": Family(
        template="{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by "
        "Hugging Face<|im_end|>\n' }}" + CHATML,
        special=("<|im_start|>", "<|im_end|>"),
        states=(
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
            f"Face<|im_end|>\n<|im_start|>user\n{FIRST}<|im_end|>\n<|im_start|>assistant\n",
            f"go on<|im_end|>\n<|im_start|>user\n{SECOND}<|im_end|>\n<|im_start|>assistant\n",
        ),
        end="<|im_end|>",
    ),
    "qwen2.5": Family(
        template="{{ '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a "
        "helpful assistant.<|im_end|>\n' }}" + CHATML,
        special=("<|im_start|>", "<|im_end|>"),
        states=(
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
            f"assistant.<|im_end|>\n<|im_start|>user\n{FIRST}<|im_end|>\n<|im_start|>assistant\n",
            f"go on<|im_end|>\n<|im_start|>user\n{SECOND}<|im_end|>\n<|im_start|>assistant\n",
        ),
        end="<|im_end|>",
    ),
    "qwen3": Family(
        template=QWEN3,
        special=("<|im_start|>", "<|im_end|>", "<think>", "</think>"),
        states=(
            f"<|im_start|>user\n{FIRST}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
            f"<|im_start|>user\n{FIRST}<|im_end|>\n<|im_start|>assistant\ngo on<|im_end|>\n"
            f"<|im_start|>user\n{SECOND}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ),
        end="<|im_end|>",
        is_stable=False,
    ),
    "llama3": Family(
        template=LLAMA3,
        special=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        states=(
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge "
            "Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user"
            f"<|end_header_id|>\n\n{FIRST}<|eot_id|><|start_header_id|>assistant"
            "<|end_header_id|>\n\n",
            f"go on<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{SECOND}<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        end="<|eot_id|>",
    ),
    "mistral": Family(
        template=MISTRAL,
        special=("<s>", "</s>", "[INST]", "[/INST]"),
        states=(f"<s>[INST] {FIRST}[/INST]", f" go on</s>[INST] {SECOND}[/INST]"),
        end="</s>",
        metaspace=True,
    ),
    "gemma3": Family(
        template=GEMMA3,
        special=("<bos>", "<start_of_turn>", "<end_of_turn>"),
        states=(
            f"<bos><start_of_turn>user\n{FIRST}<end_of_turn>\n<start_of_turn>model\n",
            f"go on<end_of_turn>\n<start_of_turn>user\n{SECOND}<end_of_turn>\n"
            "<start_of_turn>model\n",
        ),
        end="<end_of_turn>",
        metaspace=True,
    ),
}


def renderer(family: Family) -> Renderer:
    texts = [FIRST, SECOND, "go on open blue box done You find a hat. I see: Thought: Action:"]
    tokenizer = Tokenizer(models.BPE(byte_fallback=family.metaspace, unk_token="<unk>"))
    if family.metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Sequence(
            [decoders.Metaspace(prepend_scheme="first"), decoders.ByteFallback(), decoders.Fuse()]
        )
        alphabet: list[str] = ["\n", *map(chr, range(33, 127))]
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<unk>", *family.special]
    trainer = trainers.BpeTrainer(
        vocab_size=520, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(
        [*texts, "system user assistant model Cutting Knowledge Date: named SmolLM"], trainer
    )
    return Renderer(
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            unk_token="<unk>",
            eos_token=family.end,
            additional_special_tokens=list(family.special),
            chat_template=family.template,
            clean_up_tokenization_spaces=False,
        )
    )


def template_ids(own: Renderer, trajectory: Trajectory, step: int) -> list[int]:
    """The state of a step by the tokenizer's own template."""
    messages = []
    for i, s in enumerate(trajectory.steps[: step + 1]):
        text = f"{trajectory.instruction}\n\n{s.observation}" if i == 0 else s.observation
        action = f"Thought: {s.thought}\nAction: {s.action}" if s.thought else s.action
        messages.append({"role": "user", "content": text.strip()})
        messages.append({"role": "assistant", "content": action})
    found = own.tokenizer.apply_chat_template(
        messages[:-1], add_generation_prompt=True, return_dict=False,
        enable_thinking=False, date_string="26 Jul 2024",
    )  # fmt: skip
    return list(found)


def text(own: Renderer, ids: list[int]) -> str:
    return str(own.tokenizer.decode(ids, skip_special_tokens=False))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("trajectory", [SIMPLE, REACT], ids=["action only", "react"])
def test_ids_equal_those_of_the_familys_own_template(name: str, trajectory: Trajectory) -> None:
    own = renderer(FAMILIES[name])
    states = list(own.render(trajectory).states)
    expected = [template_ids(own, trajectory, step) for step in range(3)]
    assert [text(own, s) for s in states] == [text(own, e) for e in expected]
    assert states == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_states_read_as_written_by_hand(name: str) -> None:
    family = FAMILIES[name]
    own = renderer(family)
    first, second, _ = own.render(SIMPLE).states
    expected = family.states
    if family.is_stable:
        expected = (expected[0], expected[0] + expected[1])
    shown = [text(own, s) for s in (first, second)]
    if family.metaspace:  # its decoder drops the space that its encoder adds
        shown = [s.replace(" ", "") for s in shown]
        expected = tuple(e.replace(" ", "") for e in expected)
    assert tuple(shown) == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_only_the_action_and_its_end_are_trained(name: str) -> None:
    family = FAMILIES[name]
    own = renderer(family)
    for trajectory in (SIMPLE, REACT):
        for step, action in zip(trajectory.steps, own.render(trajectory).actions, strict=True):
            said = (
                f"Thought: {step.thought}\nAction: {step.action}" if step.thought else step.action
            )
            assert text(own, list(action)).replace(" ", "") == (said + family.end).replace(" ", "")
            assert own.parse(action) == (step.thought, step.action)
            assert action[-1] == own.end_id


@pytest.mark.parametrize("name", FAMILIES)
def test_the_renderer_knows_whether_states_are_prefixes(name: str) -> None:
    family = FAMILIES[name]
    own = renderer(family)
    states = list(own.render(SIMPLE).states)
    are_prefixes = all(later[: len(earlier)] == earlier for earlier, later in pairwise(states))
    assert own.is_stable == are_prefixes == family.is_stable


def test_templates_that_ask_for_the_date_always_get_the_same() -> None:
    template = "{{ 'It is ' + strftime_now('%A, %d %B %Y') + '.' }}" + CHATML
    family = replace(FAMILIES["qwen2.5"], template=template)
    state = next(renderer(family).render(SIMPLE).states)
    assert text(renderer(family), state).startswith("It is Friday, 26 July 2024.<|im_start|>user")
