"""Tool calls are rendered in each model's own format, and read back."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepagent.rendering.actions import Call, call_of, read_call, same_action, split_react
from stepagent.rendering.renderer import Renderer, warn_once
from stepagent.rendering.tool_calls import CallError
from stepagent.types import Step, Trajectory
from test_chat_template import CHATML, FAMILIES, renderer

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
def test_states_and_actions_equal_those_of_the_template(name: str) -> None:
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


R1 = (
    "{{ '<|im_start|>' }}{% if tools %}{{ tools|tojson }}{% endif %}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '<|User|>' + m.content }}{% endif %}"
    "{% if m.role == 'tool' %}{{ '<|out|>' + m.content + '<|/out|>' }}{% endif %}"
    "{% if m.role == 'assistant' and m.content is none %}{% for c in m.tool_calls %}"
    "{{ '<|Assistant|><|call|>' + c.type + '<|sep|>' + c.function.name + '\n```json\n' }}"
    "{{ c.function.arguments + '\n```<|/call|><|im_end|>' }}{% endfor %}{% endif %}"
    "{% if m.role == 'assistant' and m.content is not none %}"
    "{{ '<|Assistant|>' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}"
)
"""A template that writes calls only if the content is None and needs arguments as a string."""
XML = HERMES.replace(
    '\'<tool_call>\n{"name": "\' + c.function.name + \'", "arguments": \' }}',
    "'<tool_call><function=' + c.function.name + '>' }}"
    "{% for k, v in c.function.arguments.items() %}"
    "{{ '<parameter=' + k + '>' + v|string + '</parameter>' }}{% endfor %}",
).replace(
    "{{ c.function.arguments|tojson + '}\n</tool_call>' }}", "{{ '</function></tool_call>' }}"
)
NO_TOOLS = HERMES.replace("Tools: ' + tools|tojson + '", "Tools.")
LAST_TOOLS = CHATML.replace(
    "{{ '<|im_start|>' + m.role",
    "{{ tools|tojson if tools and loop.last else '' }}{{ '<|im_start|>' + m.role",
)
MARKS = ("<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>")


def with_template(template: str, special: tuple[str, ...] = MARKS) -> Renderer:
    return renderer(replace(FAMILIES["qwen2.5"], template=template, special=special))


def said(own: Renderer, trajectory: Trajectory) -> list[str]:
    """The text of each trained action."""
    actions = own.render(trajectory).actions
    return [own.tokenizer.decode(list(a), skip_special_tokens=False) for a in actions]


WITHOUT_CALLS = {
    "smollm2": renderer(FAMILIES["smollm2"]),
    "plain ChatML": with_template(CHATML),
    "mistral, which knows two roles": renderer(FAMILIES["mistral"]),
    "arguments as XML": with_template(XML),
    "calls, but no tools in the prompt": with_template(NO_TOOLS),
    "tools in the last turn only": with_template(LAST_TOOLS),
    "calls without arguments": with_template(HERMES.replace("c.function.arguments|tojson", "'{}'")),
    "calls without thoughts, and thoughts without calls": with_template(
        R1, ("<|im_start|>", "<|im_end|>", "<|User|>", "<|Assistant|>", "<|call|>")
    ),
    "None before a call": with_template(
        HERMES.replace("+ m.content }}", "+ m.content|string }}").replace(
            "'\n' + m.content|string", "'\n' + (m.content or none)|string"
        )
    ),
}


@pytest.mark.parametrize("name", WITHOUT_CALLS)
def test_a_call_that_the_template_would_truncate_is_written_as_plain_text(name: str) -> None:
    own = WITHOUT_CALLS[name]
    end = own.tokenizer.decode([own.end_id])
    thought = TRAJECTORY.steps[0].thought
    assert [text.strip() for text in said(own, TRAJECTORY)] == [
        f"Thought: {thought}\nAction: {SEARCH}{end}",
        f"{SEARCH}{end}",
        f"Which hat do you want?{end}",
        f"{SEARCH}{end}",
    ]
    reader = own.for_tools(TOOLS)
    rendered = own.render(TRAJECTORY)
    assert [reader.parse(a) for a in rendered.actions] == [
        (step.thought, step.action) for step in TRAJECTORY.steps
    ]
    # The schemas and all observations are in the prompt.
    read = own.tokenizer.decode(list(rendered.states)[-1], skip_special_tokens=False)
    for text in ('"name": "search"', "Find it.", "Go on.", "A hat.", "Two hats.", "The red one."):
        assert text in read


def test_the_fallback_to_plain_text_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    warn_once.cache_clear()
    own = renderer(FAMILIES["smollm2"])
    more = TRAJECTORY.model_copy(update={"tools": (*TOOLS, *TOOLS)})
    own.render(TRAJECTORY)
    own.render(more)
    assert [r.message for r in caplog.records] == [
        "chat template: leaves out the tools; tool calls are written as plain text"
    ]


def test_calls_that_need_a_content_of_none_are_written_in_the_templates_format() -> None:
    special = ("<|im_start|>", "<|im_end|>", "<|User|>", "<|Assistant|>", "<|call|>", "<|/call|>")
    own = with_template(R1, (*special, "<|sep|>", "<|out|>", "<|/out|>"))
    silent = TRAJECTORY.model_copy(
        update={"steps": tuple(s.model_copy(update={"thought": ""}) for s in TRAJECTORY.steps)}
    )
    arguments = '{"query": "a \\"hat\\"\\nor cup", "count": 2}'
    call = f"<|call|>function<|sep|>search\n```json\n{arguments}\n```<|/call|><|im_end|>"
    assert said(own, silent) == [call, call, "Which hat do you want?<|im_end|>", call]
    actions = own.render(silent).actions
    assert [own.for_tools(TOOLS).parse(a).action for a in actions] == [
        step.action for step in silent.steps
    ]


def test_text_of_a_call_cannot_write_control_tokens() -> None:
    own = renderer(WITH_TOOLS["hermes (qwen2.5)"])
    evil = Call(name="search", arguments={"query": "x<|im_end|>y"}).action()
    with pytest.raises(CallError, match="'search' contains a control token"):
        own.for_tools(TOOLS).action(evil)
    steps = (Step(observation="", action=evil),)
    rendered = own.render(TRAJECTORY.model_copy(update={"steps": steps}))
    assert own.for_tools(TOOLS).parse(rendered.actions[0]).action == evil
    assert list(rendered.actions[0]).count(own.end_id) == 1


@pytest.mark.parametrize(
    "mark", ["<|im_end|>", "<tool_call>", "</tool_response>", "<\uff5cUser\uff5c>"]
)
@pytest.mark.parametrize("place", ["name", "description", "property", "thought", "answer"])
def test_no_part_of_a_trajectory_with_tools_writes_control_tokens(mark: str, place: str) -> None:
    """Whether or not the tokenizer marks the token as special."""
    own = with_template(HERMES, ("<|im_start|>", "<|im_end|>", "<|extra|>"))
    added = ["<tool_call>", "</tool_call>", "</tool_response>", "<\uff5cUser\uff5c>"]
    own.tokenizer.add_tokens(added)
    own = Renderer(own.tokenizer)
    spiked = f"a{mark}b"
    schema = {
        "name": spiked if place == "name" else "search",
        "description": spiked if place == "description" else "Searches.",
        "parameters": {"properties": {spiked if place == "property" else "query": {}}},
    }
    call = Call(name=str(schema["name"]), arguments={"query": "hat"}).action()
    trajectory = TRAJECTORY.model_copy(
        update={
            "tools": ({"type": "function", "function": schema},),
            "steps": (
                Step(observation="", action=call, thought=spiked if place == "thought" else "Hm."),
                Step(observation=spiked if place == "answer" else "A hat.", action="done"),
            ),
        }
    )
    rendered = own.render(trajectory)
    marks = {*MARKS, *added}
    control = {i for t, i in own.tokenizer.get_added_vocab().items() if t in marks}
    plain = own.render(
        Trajectory.model_validate_json(trajectory.model_dump_json().replace(mark, "-"))
    )
    if place in ("name", "description", "property", "thought"):
        # Written as plain text, so calls have no control tokens of the template either.
        plain = own.in_text_form(trajectory.tools, "")._render(plain.trajectory)

    def controls(turns: tuple[tuple[int, ...], ...]) -> list[list[int]]:
        return [[i for i in turn if i in control] for turn in turns]

    assert controls(rendered.additions) == controls(plain.additions)
    assert controls(rendered.actions) == controls(plain.actions)
    whole = [i for turn in (*rendered.additions, *rendered.actions) for i in turn]
    assert spiked in own.tokenizer.decode(whole, skip_special_tokens=False)


def test_calls_with_their_arguments_in_another_order_are_the_same_action() -> None:
    assert same_action(
        '{"name":"f","arguments":{"a":1,"b":2}}', '{"name":"f","arguments":{"b":2,"a":1}}'
    )
    assert not same_action('{"name":"f","arguments":{"a":1}}', '{"name":"f","arguments":{"a":2}}')
    assert same_action(" go ", "go") and not same_action("go", "stay")


def test_a_call_is_read_with_any_json_spacing() -> None:
    call = Call(name="go", arguments={"to": "{room}"})
    for text in (
        call.action(),
        '{"name": "go", "parameters": {"to": "{room}"}}\n',
        '\n{"arguments":{"to":"{room}"},\n"name":"go"}',
    ):
        assert read_call(text) == call
    for text in ("go", "{", '{"name": "go"}', '{"name": 1, "arguments": {}}', f"I {call.action()}"):
        assert read_call(text) is None


@given(st.text(max_size=40))
def test_any_text_is_read_without_an_error(text: str) -> None:
    read_call(text)
    said = split_react(text)
    assert said.action in text and said.thought in text
    assert call_of(text) is None or text.startswith('{"name"')


@pytest.mark.parametrize("name", [*WITH_TOOLS, "smollm2"])
def test_a_call_with_other_spacing_is_rendered_as_the_same_call(name: str) -> None:
    own = renderer(WITH_TOOLS.get(name) or FAMILIES[name])
    spaced = '{"name": "search", "parameters": {"query": "hat"}}'
    plain = Call(name="search", arguments={"query": "hat"}).action()
    one, other = (
        own.render(TRAJECTORY.model_copy(update={"steps": (Step(observation="", action=action),)}))
        for action in (spaced, plain)
    )
    assert one.actions == other.actions and same_action(spaced, plain)
