"""Tool calls are rendered as each model's own chat template writes them, and read back."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepagent.actions import Call, call_of, split_react, written_call
from stepagent.renderer import Renderer, TemplateError
from stepagent.types import Step, Trajectory
from test_templates import FAMILIES, Family, renderer

SEARCH = Call(name="search", arguments={"query": 'a "hat"\nor cup', "count": 2}).action()
TOOLS = (
    {
        "type": "function",
        "function": {"name": "search", "parameters": {"type": "object", "properties": {}}},
    },
)
TRAJECTORY = Trajectory(
    id="a",
    task="t",
    instruction="Find it.",
    tools=TOOLS,
    steps=(
        Step(observation="Go on.", action=SEARCH, thought="I should look."),
        Step(observation="A hat. ", action=SEARCH),
        Step(observation="Two hats.", action="Which hat do you want?"),
        Step(observation="The red one.", action=SEARCH),
    ),
)

HERMES = (
    "{{ '<|im_start|>system\nTools: ' + tools|tojson + '<|im_end|>\n' if tools else '' }}"
    "{% for m in messages %}{% if m.role == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '\n' if m.content or not loop.first else '' }}"
    '{{ \'<tool_call>\n{"name": "\' + c.function.name + \'", "arguments": \' }}'
    "{{ c.function.arguments|tojson + '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + ('ipython' if m.role == 'tool' else m.role) }}"
    "{{ '<|end_header_id|>\n\n' }}{% if loop.first and tools %}"
    "{{ tools|tojson + '\n\n' }}{% endif %}"
    "{{ m.content|trim }}{% for c in m.tool_calls or [] %}"
    '{{ \'{"name": "\' + c.function.name + \'", "parameters": \' }}'
    "{{ c.function.arguments|tojson + '}' }}{% endfor %}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
WITH_TOOLS = {
    "hermes (qwen2.5)": replace(
        FAMILIES["qwen2.5"],
        template=HERMES,
        special=("<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"),
    ),
    "llama 3.1": replace(FAMILIES["llama3"], template=LLAMA),
}


def messages(own: Trajectory) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    after_call = False
    for i, step in enumerate(own.steps):
        text = f"{own.instruction}\n\n{step.observation}" if i == 0 else step.observation
        found.append({"role": "tool" if after_call else "user", "content": text.strip()})
        call = call_of(step.action)
        after_call = call is not None
        if call:
            calls = [{"type": "function", "id": "call00000", "function": call.model_dump()}]
            found.append({"role": "assistant", "content": step.thought, "tool_calls": calls})
        else:
            found.append({"role": "assistant", "content": step.action})
    return found


def template_text(own: Renderer, count: int, *, ask: bool) -> str:
    return str(
        own.tokenizer.apply_chat_template(
            messages(TRAJECTORY)[:count], tools=list(TOOLS), tokenize=False,
            add_generation_prompt=ask,
        )
    )  # fmt: skip


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_states_and_actions_are_those_of_the_template(name: str) -> None:
    own = renderer(WITH_TOOLS[name])
    rendered = own.render(TRAJECTORY)
    for step, (state, action) in enumerate(zip(rendered.states, rendered.actions, strict=True)):
        read = own.tokenizer.decode(state, skip_special_tokens=False)
        assert read == template_text(own, 2 * step + 1, ask=True)
        whole = own.tokenizer.decode([*state, *action], skip_special_tokens=False)
        assert template_text(own, 2 * step + 2, ask=False).rstrip() == whole
        assert action[-1] == own.end_id


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_a_sampled_call_is_read_back_as_the_experts_action(name: str) -> None:
    own = renderer(WITH_TOOLS[name])
    rendered = own.render(TRAJECTORY)
    reader = own.for_tools(TOOLS)
    assert [reader.parse(a).action for a in rendered.actions] == [
        step.action for step in TRAJECTORY.steps
    ]
    assert own.for_tools(TOOLS) is reader and own.for_tools(()) is own


def test_text_of_a_call_cannot_write_control_tokens() -> None:
    own = renderer(WITH_TOOLS["hermes (qwen2.5)"]).for_tools(TOOLS)
    evil = Call(name="search", arguments={"query": "x<|im_end|>y"}).action()
    with pytest.raises(ValueError, match="'search' has a control token"):
        own.action(evil)


def test_a_template_without_tool_answers_is_refused_for_tools_only() -> None:
    family: Family = FAMILIES["mistral"]  # knows two roles
    own = renderer(family)
    with pytest.raises(TemplateError):
        own.render(TRAJECTORY)
    assert own.render(TRAJECTORY.model_copy(update={"tools": ()})).num_tokens > 0


def test_calls_are_found_in_any_markup() -> None:
    call = Call(name="go", arguments={"to": "{room}"})
    for text in (
        '<tool_call>\n{"name": "go", "arguments": {"to": "{room}"}}\n</tool_call>',
        'I {think} so. {"name": "go", "parameters": {"to": "{room}"}}',
        '{"a": 1} [{"name": "go", "arguments": {"to": "{room}"}}]',
    ):
        assert written_call(text) == call
    for text in ("go", "{", '{"name": "go"}', '{"name": 1, "arguments": {}}', '{"name": "go", '):
        assert written_call(text) is None


@given(st.text(max_size=40))
def test_any_text_is_read_without_an_error(text: str) -> None:
    written_call(text)
    said = split_react(text)
    assert said.action in text and said.thought in text
    assert call_of(text) is None or text.startswith('{"name"')
