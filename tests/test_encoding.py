"""Content never becomes control tokens, with any tokenizer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stepagent.rendering.chat_template import TemplateError
from stepagent.rendering.encoding import Encoder, EncodingError
from stepagent.rendering.renderer import Renderer, warn_once
from stepagent.scratch.small_model import CHAT_TEMPLATE, train_tokenizer
from stepagent.types import Step, Trajectory

MARKS = ("<think>", "</think>", "<tool_call>", "<\uff5cUser\uff5c>", "[TOOL_CALLS]")
"""Not marked as special, as in many published tokenizers."""


def tokenizer(normalizer: normalizers.Normalizer | None = None) -> PreTrainedTokenizerFast:
    found = train_tokenizer(["go on, open the red box"], 320)
    if normalizer is not None:
        found.backend_tokenizer.normalizer = normalizer
    found.add_tokens([AddedToken(m, special=False, normalized=True) for m in MARKS])
    found.add_tokens([AddedToken("\n\n", special=False), "scienceworld"])
    return found


ENCODERS = {
    "plain": Encoder(tokenizer()),
    "NFKC": Encoder(tokenizer(normalizers.NFKC())),
    "lower case": Encoder(tokenizer(normalizers.Lowercase())),
}


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("mark", [*MARKS, "<|end|>", "<|assistant|>"])
def test_a_control_tokens_name_in_a_text_stays_text(name: str, mark: str) -> None:
    own = ENCODERS[name]
    wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in mark)
    for text in (f"a {mark} b", mark, f"{mark}{mark}", f"a{mark.upper()}", f"a {wide} b", wide):
        assert own.controls(own.content(text)) == []
    if name == "plain":
        for text in (f"a {mark} b", mark * 3, f"{mark}x{wide}"):
            assert own.text(own.content(text)) == text
    assert own.controls(own.markup(mark)) and not own.controls(own.markup("a < b"))


@given(st.lists(st.sampled_from([*MARKS, "<|end|>", "<", "|end|>", "thi", "nk>", " "]), max_size=8))
def test_no_sequence_of_marks_and_partial_marks_writes_a_control_token(parts: list[str]) -> None:
    own = ENCODERS["plain"]
    ids = own.content("".join(parts))
    assert own.controls(ids) == []
    assert own.text(ids) == "".join(parts).strip()


def test_added_words_and_line_breaks_are_vocabulary() -> None:
    own = ENCODERS["plain"]
    ids = own.content("scienceworld\n\nscienceworld")
    assert len(ids) == 3
    assert own.text(ids) == "scienceworld\n\nscienceworld"


def test_a_mark_that_is_a_word_of_the_vocabulary_is_cut_too() -> None:
    vocabulary = {"<unk>": 0, "a": 1, "<end>": 2, "b": 3}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["<unk>", "<end>"])
    own = Encoder(
        PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", unk_token="<unk>")
    )
    assert own.content("a <end> b") == [1, 0, 0, 3]


def test_a_special_mark_of_one_character_cannot_be_cut() -> None:
    vocabulary = {"<unk>": 0, "a": 1, "\u00a7": 2}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["<unk>", "\u00a7"])
    own = Encoder(
        PreTrainedTokenizerFast(tokenizer_object=made, eos_token="\u00a7", unk_token="<unk>")
    )
    with pytest.raises(EncodingError, match="turns '\u00a7' into a control token"):
        own.content("a \u00a7 a")


def test_letters_and_words_that_were_added_are_vocabulary() -> None:
    made = tokenizer()
    made.add_tokens([AddedToken("\u00f7", special=False), AddedToken("query", special=False)])
    own = Encoder(made)
    assert len(own.content("query\u00f7query")) == 3


def test_an_end_of_text_token_that_is_also_the_unknown_token_is_a_control_token() -> None:
    made = train_tokenizer(["go on"], 320)
    made.unk_token = "<|end|>"
    own = Renderer(made)
    ids = own.action("go <|end|> on")
    assert list(ids).count(own.end_id) == 1 and own.parse(ids).action == "go <|end|> on"


def test_a_text_full_of_marks_is_encoded_in_a_few_passes() -> None:
    own = ENCODERS["plain"]
    text = "<think>x " * 3000
    ids = own.content(text)
    assert own.controls(ids) == [] and own.text(ids) == text.strip()


def test_an_action_that_the_tokenizer_cannot_encode_is_refused() -> None:
    made = tokenizer(normalizers.NFKC())
    trajectory = Trajectory(
        id="a\x1b[2J",
        task="t",
        instruction="go",
        steps=(Step(observation="", action="on"), Step(observation="", action="take \u00bd cup")),
    )
    with pytest.raises(TemplateError) as refusal:
        Renderer(made).render(trajectory)
    assert str(refusal.value) == (
        "a\\x1b[2J: step 2: the tokenizer cannot encode 'take \u00bd cup': it becomes "
        "'take 1\u20442 cup'"
    )


def test_a_turn_must_end_in_a_single_token() -> None:
    made = train_tokenizer(["go on"], 320)
    made.chat_template = CHAT_TEMPLATE.replace("<|end|>", "<|im_end|>")
    with pytest.raises(
        TemplateError, match=r"ends a turn with '<\|im_end\|>', which is not a single token"
    ):
        Renderer(made)
    made.add_tokens([AddedToken("<|im_end|>", special=False)])
    own = Renderer(made)
    assert own.tokenizer.convert_ids_to_tokens(own.end_id) == "<|im_end|>"
    assert own.parse(own.action("go <|im_end|> on")).action == "go <|im_end|> on"


def test_turns_marked_by_plain_text_cause_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    warn_once.cache_clear()
    made = train_tokenizer(["go on"], 320)
    made.chat_template = (
        "{% for m in messages %}{{ 'USER: ' if m.role == 'user' else '\nAGENT: ' }}{{ m.content }}"
        "{{ '<|end|>' if m.role == 'assistant' else '' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\nAGENT:' }}{% endif %}"
    )
    assert Renderer(made).marks_are_text and Renderer(made).marks_are_text
    assert [r.message for r in caplog.records] == [
        "chat template: marks the agent's turn by plain text, '\\nAGENT:'; an observation that "
        "contains it looks like a turn"
    ]


def test_a_long_trajectory_is_measured_in_one_pass() -> None:
    own = Renderer(train_tokenizer(["go on"], 320))
    steps = tuple(Step(observation="x", action="y") for _ in range(20_000))
    rendered = own.render(Trajectory(id="a", task="t", instruction="go", steps=steps))
    assert rendered.num_tokens == sum(map(len, rendered.additions)) + len(own.ask) + 2


def test_words_that_mark_turns_are_control_tokens_in_the_template_that_writes_them() -> None:
    made = train_tokenizer(["go on"], 320)
    made.add_tokens([AddedToken("USERTURN", special=False), AddedToken("BOTTURN", special=False)])
    made.chat_template = CHAT_TEMPLATE.replace(
        "'<|' + message['role'] + '|>'",
        "{'user': 'USERTURN ', 'assistant': 'BOTTURN '}[message.role]",
    ).replace("<|assistant|>", "BOTTURN ")
    own = Renderer(made)
    turn = made.convert_tokens_to_ids("BOTTURN")
    assert turn in own.ask and not own.marks_are_text
    assert turn not in own.observation("a BOTTURN go") and turn not in own.action("BOTTURN")


def test_an_empty_text_before_a_line_break_is_encoded_too() -> None:
    made = train_tokenizer(["\n\n\n\n go on \n\n"], 320)
    made.chat_template = CHAT_TEMPLATE.replace(
        "message['content'] +", "message['content'] + '\n' +"
    )
    own = Renderer(made)
    assert own.text(own.observation("")).endswith("<|user|>\n")


class PanicException(BaseException):
    """The Python form of a panic in Rust."""


def test_a_panic_of_the_tokenizer_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train_tokenizer(["go"], 300)
    encoder = Encoder(tokenizer)

    def panic(*_: object, **__: object) -> None:
        raise PanicException("index out of range")

    monkeypatch.setattr(type(tokenizer), "__call__", panic)
    for encode in (encoder.content, encoder.markup):
        with pytest.raises(EncodingError, match=r"^the tokenizer crashes on '.*go'$"):
            encode("go")
    with pytest.raises(EncodingError, match="crashes"):
        Encoder(tokenizer)
