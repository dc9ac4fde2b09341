"""The renderer: histories grow by appending, text stays text, unsupported templates are refused."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from fakes import OBJECTS, demonstrations
from stepagent.rendering.renderer import RenderedTrajectory, Renderer, TemplateError
from stepagent.scratch.small_model import ASSISTANT, CHAT_TEMPLATE, END, PAD, USER, train_tokenizer
from stepagent.types import Step, Trajectory

TEXTS = [text for t in demonstrations() for s in t.steps for text in (s.observation, s.action)]
CONTROL = (PAD, USER, ASSISTANT, END)


def tokenizer(template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    found = train_tokenizer(TEXTS, 320)
    found.chat_template = template
    return found


RENDERER = Renderer(tokenizer())
CONTROL_IDS = {RENDERER.tokenizer.convert_tokens_to_ids(token) for token in CONTROL}


def trajectory(instruction: str, steps: list[tuple[str, str]]) -> Trajectory:
    made = tuple(Step(observation=o, action=a) for o, a in steps)
    return Trajectory(id="a", task="t", instruction=instruction, steps=made)


def messages(own: Trajectory) -> list[dict[str, str]]:
    """The trajectory as a dialogue, for `apply_chat_template`."""
    found = []
    for i, step in enumerate(own.steps):
        text = f"{own.instruction}\n\n{step.observation}" if i == 0 else step.observation
        found.append({"role": "user", "content": text})
        found.append({"role": "assistant", "content": step.action})
    return found


def template_ids(renderer: Renderer, own: Trajectory, step: int) -> tuple[int, ...]:
    """The same by the tokenizer's own template."""
    found = renderer.tokenizer.apply_chat_template(
        messages(own)[: 2 * step + 1], add_generation_prompt=True, return_dict=False
    )
    return tuple(found)


def test_ids_equal_the_tokenizers_own_template_and_histories_are_prefixes() -> None:
    for own in (*demonstrations()[:5], *demonstrations()[40:45]):
        rendered = RENDERER.render(own)
        expected = [template_ids(RENDERER, own, step) for step in range(len(own.steps))]
        assert [tuple(state) for state in rendered.states] == expected
        for before, after in pairwise(expected):
            assert after[: len(before)] == before
        assert rendered.num_tokens == len(expected[-1]) + len(rendered.actions[-1])


# Chat templates of common shapes; `m` is a message.
SHAPES = {
    "line breaks": "{% for m in messages %}<|user|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|user|>assistant\n{% endif %}",
    "system text": "<|user|>Be good.<|end|>{% for m in messages %}<|{{ m['role'] }}|>"
    "{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "no mark before the assistant": "{% for m in messages %}{% if m['role'] == 'user' %}"
    "<|user|>{{ m['content'] }}<|assistant|>{% else %}{{ m['content'] }}<|end|>{% endif %}"
    "{% endfor %}",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_ids_equal_those_of_other_templates_too(shape: str) -> None:
    renderer = Renderer(tokenizer(SHAPES[shape]))
    assert renderer.end_id == renderer.tokenizer.convert_tokens_to_ids(END)
    own = demonstrations()[40]
    rendered = renderer.render(own)
    for step, state in enumerate(rendered.states):
        assert tuple(state) == template_ids(renderer, own, step)


REWRITING = {
    "thinking dropped": "{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if loop.last and m['role'] == 'assistant' %}[thought]{% endif %}{{ m['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>[thought]{% endif %}",
    "a word in the last user turn": "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% if loop.last and m['role'] == 'user' %} Now!{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
}
"""Templates that rewrite earlier turns."""


@pytest.mark.parametrize("shape", REWRITING)
def test_states_of_templates_that_rewrite_earlier_turns_share_their_histories(shape: str) -> None:
    renderer = Renderer(tokenizer(REWRITING[shape]))
    assert not renderer.is_stable and RENDERER.is_stable
    own = max(demonstrations(), key=lambda t: len(t.steps))
    rendered = renderer.render(own)
    states = [template_ids(renderer, own, step) for step in range(len(own.steps))]
    assert [tuple(state) for state in rendered.states] == states
    for before, after in pairwise(states):
        kept = before[: len(before) - len(renderer.ask)]
        assert after[: len(before)] != before
        assert after[: len(kept)] == kept


def test_an_observation_continues_a_history_that_was_sampled() -> None:
    rendered = RENDERER.render(demonstrations()[0])
    steps = demonstrations()[0].steps
    opening = RENDERER.opening(demonstrations()[0].instruction, steps[0].observation)
    actions = tuple(RENDERER.action(s.action) for s in steps)
    later = (
        (*RENDERER.past(action), *RENDERER.observation(step.observation))
        for action, step in zip(actions, steps[1:], strict=False)
    )
    assert rendered.additions == (opening, *later)
    assert rendered.actions == actions


@pytest.mark.parametrize("control", CONTROL)
def test_text_cannot_write_control_tokens(control: str) -> None:
    plain = RENDERER.render(trajectory("go", [("see", "act"), ("see", "act")]))
    spiked = f"x{control}y"
    evil = RENDERER.render(trajectory(spiked, [(spiked, spiked), (control, control)]))

    def control_ids(rendered: RenderedTrajectory) -> list[list[int]]:
        turns = (*rendered.additions, *rendered.actions)
        return [[i for i in turn if i in CONTROL_IDS] for turn in turns]

    assert control_ids(evil) == control_ids(plain)
    # The whole text is there, as plain text.
    assert RENDERER.parse(evil.actions[0]).action == spiked
    assert control in RENDERER.tokenizer.decode(list(evil.additions[1]))


@given(st.text(max_size=30), st.text(max_size=30).filter(str.strip))
def test_any_text_yields_only_the_templates_control_tokens(observation: str, action: str) -> None:
    rendered = RENDERER.render(trajectory("go", [(observation, action)]))
    ids = (*next(rendered.states), *rendered.actions[0])
    user, assistant, end = (
        RENDERER.tokenizer.convert_tokens_to_ids(t) for t in (USER, ASSISTANT, END)
    )
    assert [i for i in ids if i in CONTROL_IDS] == [user, end, assistant, end]


@given(
    st.one_of(
        st.text(max_size=40),
        st.lists(st.sampled_from([*OBJECTS, *CONTROL, "open", " ", "\n"]), max_size=8).map("".join),
    )
)
def test_an_action_is_read_back_unchanged(action: str) -> None:
    ids = RENDERER.action(action)
    assert ids[-1] == RENDERER.end_id and RENDERER.end_id not in ids[:-1]
    assert RENDERER.parse(ids).action == action.strip()
    assert RENDERER.parse(ids[:-1]).action == action.strip()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template; use an instruction-tuned model"),
        # Drops the thoughts of earlier assistant turns, as reasoning models' templates do.
        (
            "{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'user' or loop.last %}"
            "{{ m['content'] }}{% endif %}<|end|>{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}",
            "drops or reorders messages",
        ),
        # Truncates text.
        (
            "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'][:3] }}<|end|>{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}",
            "drops or reorders messages",
        ),
        # Nothing ends a turn.
        (
            "{% for m in messages %}{{ m['content'] }}{% endfor %}",
            "does not mark the end",
        ),
    ],
    ids=["none", "forgets", "cuts", "no end"],
)
def test_unsupported_templates_are_refused(template: str | None, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        Renderer(tokenizer(template))
