"""Random chat templates and tokenizers, combined from parts of real model families."""

import json
import random
from dataclasses import dataclass
from functools import cache

from fuzz_inputs import damaged_text
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Marks:
    """A model family's markup of turns; `{}` is the role."""

    start: str
    end: str
    control: tuple[str, ...]
    before: str = ""
    agent: str = "assistant"


FAMILIES = (
    Marks("<|im_start|>{}\\n", "<|im_end|>\\n", ("<|im_start|>", "<|im_end|>")),
    Marks(
        "<|start_header_id|>{}<|end_header_id|>\\n\\n", "<|eot_id|>",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|begin|>"), "<|begin|>",
    ),
    Marks(
        "<start_of_turn>{}\\n", "<end_of_turn>\\n",
        ("<start_of_turn>", "<end_of_turn>", "<bos>"), "<bos>", "model",
    ),
    Marks("<|{}|>", "<|end|>", ("<|user|>", "<|assistant|>", "<|end|>", "<|tool|>")),
    Marks("### {}:\\n", "\\n\\n", ()),
    Marks("### {}: ", "</s>\\n", ("</s>",)),
    Marks("<{}>", "</s>", ("<user>", "<assistant>", "</s>", "<s>"), "<s>"),
)  # fmt: skip
TOKENIZERS = ("bytes", "spaces", "words")
NORMALIZERS = ("none", "none", "none", "NFKC", "NFC", "Lowercase", "Strip")
EXTRA = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)
TEXTS = [
    "open the red box go on search[cup] click[1] A. Thought: Action: Observation: null true false",
    'system user assistant tool {"name": "search", "arguments": {"query": 1}} Tools: ### ',
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 .,:;!?-_()[]{}<>|/\\'\"\n",
]


@cache
def _trained(kind: str) -> str:
    """A small tokenizer as JSON, without control tokens."""
    own = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=kind == "spaces"))
    alphabet: list[str] = []
    if kind == "bytes":
        own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        own.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    elif kind == "spaces":
        own.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        parts = [
            decoders.Metaspace(prepend_scheme="first"),
            decoders.ByteFallback(),
            decoders.Fuse(),
        ]
        own.decoder = decoders.Sequence(parts)
        alphabet = ["\n"]
    else:  # no byte fallback: unknown characters are lost
        own.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        own.decoder = decoders.Metaspace(prepend_scheme="never")
        alphabet = ["\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        # Byte tokens allow a byte fallback.
        special_tokens=["<unk>", *(f"<0x{b:02X}>" for b in range(256) if kind == "spaces")],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    own.train_from_iterator(TEXTS, trainer)
    whole = json.loads(own.to_str())
    # Byte tokens are ordinary vocabulary, not control tokens.
    whole["added_tokens"] = [t for t in whole["added_tokens"] if t["content"] == "<unk>"]
    return json.dumps(whole)


def tokenizer(rng: random.Random, family: Marks, template: str) -> PreTrainedTokenizerFast:
    """A tokenizer with the family's control tokens, some not marked as special."""
    own = Tokenizer.from_str(_trained(rng.choice(TOKENIZERS)))
    normalizer = rng.choice(NORMALIZERS)
    if normalizer != "none":
        own.normalizer = getattr(normalizers, normalizer)()
    missing = rng.choice(family.control) if family.control and rng.random() < 0.15 else None
    plain = []
    for token in (*family.control, *rng.sample(EXTRA, rng.randrange(len(EXTRA)))):
        if token == missing:
            continue
        if rng.random() < (0.1 if token in family.control else 0.7):
            plain.append(token)
        strips = {"lstrip": rng.random() < 0.1, "rstrip": rng.random() < 0.1}
        added = AddedToken(token, special=token not in plain, normalized=False, **strips)
        (own.add_tokens if token in plain else own.add_special_tokens)([added])
    if rng.random() < 0.1:
        # Normalized added tokens make `tokenizers` itself panic if its normalizer strips.
        own.add_tokens([AddedToken(white, normalized=False) for white in ("  ", "\n\n")])
    return PreTrainedTokenizerFast(
        tokenizer_object=own,
        unk_token="<unk>",
        eos_token=family.control[-1] if family.control and not missing else None,
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


CONTENT = ("m.content", "m['content']", "m.content|trim", "(m.content or '')", "message_text(m)")
TEXT_MACRO = (
    "{% macro message_text(m) %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content or [] %}{{ p.text }}{% endfor %}{% endif %}{% endmacro %}"
)
CALLS = (
    "",  # many templates do not write them
    '{% for c in m.tool_calls or [] %}{{ \'<tool_call>\\n{"name": "\' + c.function.name + '
    "'\", \"arguments\": ' + c.function.arguments|tojson + '}\\n</tool_call>' }}{% endfor %}",
    "{% for c in m.tool_calls or [] %}{{ '[TOOL_CALLS]' + c.function|tojson }}{% endfor %}",
    "{% for c in m.tool_calls or [] %}{{ 'call ' + c.function.name }}{% endfor %}",
    "{% for c in m.tool_calls or [] %}{{ c.function.name + '\\n' + c.function.arguments }}"
    "{% endfor %}",
    "{% for c in m.tool_calls or [] %}{{ '<function=' + c.function.name + '>\\n' }}"
    "{% for k, v in c.function.arguments.items() %}"
    "{{ '<parameter=' + k + '>\\n' + v|string + '\\n</parameter>\\n' }}{% endfor %}"
    "{{ '</function>' }}{% endfor %}",
)
TOOLS = (
    "",
    "{% if tools %}{{ 'Tools: ' + tools|tojson + '\\n' }}{% endif %}",
    "{% for t in tools or [] %}{{ t.function.name + ': ' + (t.function.description or '') }}"
    "{{ '\\n' }}{% endfor %}",
)
ASKS = ("", "", "", "<think>\\n", "<think>\\n\\n</think>\\n\\n")


def template(rng: random.Random, family: Marks) -> str:
    """A chat template of the family, or a slightly changed one."""
    content = rng.choice(CONTENT)
    macro = TEXT_MACRO if "message_text" in content else ""
    calls = rng.choice(CALLS)
    role = f"{{% set role = '{family.agent}' if m.role == 'assistant' else m.role %}}"
    tool = rng.choice(("", "{% if m.role == 'tool' %}{% set role = 'user' %}{% endif %}", "raise"))
    if tool == "raise":
        tool = "{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    start = "{{ '" + family.start.replace("{}", "' + role + '") + "' }}"
    end = "{{ '" + family.end + "' }}"
    says = "{{ " + content + " }}"
    agent = rng.choice(
        (
            says + calls,
            calls + says,
            "{% if m.tool_calls %}" + calls + "{% else %}" + says + "{% endif %}",
            "{% if m.content is none %}" + calls + "{% else %}" + says + "{% endif %}",
            "{{ m.content.split('</think>')[-1] }}" + calls,
            "{% if loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}" + says + calls,
        )
    )
    body = "{% if m.role == 'assistant' %}" + agent + "{% else %}" + says + "{% endif %}"
    asks = start.replace("role", f"'{family.agent}'") + "{{ '" + rng.choice(ASKS) + "' }}"
    whole = (
        macro
        + ("{{ '" + family.before + "' }}" if family.before else "")
        + rng.choice(TOOLS)
        + "{% for m in messages %}" + role + tool + start + body + end + "{% endfor %}"
        + "{% if add_generation_prompt %}" + asks + "{% endif %}"
    )  # fmt: skip
    if rng.random() < 0.1:
        whole = damaged_text(rng, whole)
    return whole
