"""`stepagent check` shows what is trained, and fails if a part of a trajectory is lost."""

from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import normalizers
from transformers import LlamaConfig, PreTrainedTokenizerBase

from stepagent.cli import main
from stepagent.rendering.renderer import warn_once
from stepagent.trajectories import write_jsonl
from stepagent.types import Step, Trajectory
from test_templates import FAMILIES, renderer
from test_tool_calls import TRAJECTORY, WITH_TOOLS

PLAIN = Trajectory(
    id="house/1",
    task="t",
    instruction="Fetch the hat.",
    steps=(
        Step(observation="A red box.", action="open red box", thought="It may be inside."),
        Step(observation="A hat.", action="take hat"),
    ),
)


def model(folder: Path, tokenizer: PreTrainedTokenizerBase, context: int = 2048) -> str:
    """A model folder without weights, which are not needed."""
    tokenizer.save_pretrained(str(folder))
    LlamaConfig(max_position_embeddings=context).save_pretrained(str(folder))
    return str(folder)


def checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, *trajectories: Trajectory
) -> tuple[int, str]:
    file = tmp_path / "demonstrations.jsonl"
    write_jsonl(file, trajectories)
    code = 0
    try:
        main(["check", str(file), "--model", model])
    except SystemExit as end:
        code = int(end.code or 0)
    return code, capsys.readouterr().out


def test_it_shows_what_is_prompt_and_what_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = renderer(FAMILIES["llama3"]).tokenizer
    code, out = checked(tmp_path, capsys, model(tmp_path / "m", tokenizer), PLAIN)
    assert code == 0
    lines = [line.rstrip() for line in out.splitlines()]
    assert lines[0].startswith("house/1: 2 steps, ")
    start = lines.index(" train │ Thought: It may be inside.")
    assert lines[start : start + 8] == [
        " train │ Thought: It may be inside.",
        "       │ Action: open red box<|eot_id|>",
        "prompt │ <|start_header_id|>user<|end_header_id|>",
        "       │",
        "       │ A hat.<|eot_id|><|start_header_id|>assistant<|end_header_id|>",
        "       │",
        "       │",
        " train │ take hat<|eot_id|>",
    ]
    assert "thoughts  in 1 of 2 steps, written before the action and trained with it" in lines
    assert "tools     none" in lines
    assert "lost      nothing" in lines


@pytest.mark.parametrize(
    ("family", "form"),
    [
        (WITH_TOOLS["hermes (qwen2.5)"], "in the template's format"),
        (FAMILIES["smollm2"], "as plain text"),
    ],
    ids=["hermes", "smollm2"],
)
def test_it_reports_how_tools_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family: object, form: str
) -> None:
    warn_once.cache_clear()
    tokenizer = renderer(family).tokenizer  # type: ignore[arg-type]
    code, out = checked(tmp_path, capsys, model(tmp_path / "m", tokenizer), TRAJECTORY)
    assert code == 0
    assert f"tools     in 1 trajectories, 3 calls; written {form}\n" in out


def test_text_that_the_tokenizer_loses_is_named_and_the_command_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = renderer(FAMILIES["llama3"]).tokenizer
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()  # type: ignore[attr-defined]
    seen = PLAIN.model_copy(
        update={"instruction": "fetch", "steps": (Step(observation="A hat.\x1b[2J", action="go"),)}
    )
    said = PLAIN.model_copy(update={"id": "b", "steps": (Step(observation="", action="Go"),)})
    code, out = checked(tmp_path, capsys, model(tmp_path / "m", tokenizer), seen, said)
    assert code == 1
    assert "lost      2 parts of trajectories" in out
    assert "house/1: step 1: the tokenizer changes the observation 'A hat.\\x1b[2J'" in out
    assert "b: step 1: the tokenizer cannot encode 'Go': it becomes 'go'" in out
    assert "\x1b" not in out


def test_trajectories_longer_than_the_context_are_reported_and_the_command_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = renderer(FAMILIES["llama3"]).tokenizer
    code, out = checked(tmp_path, capsys, model(tmp_path / "m", tokenizer, context=30), PLAIN)
    assert code == 1
    assert "1 trajectories are longer than the context and cannot be used" in out


def test_an_ambiguous_border_of_thought_and_action_is_a_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = renderer(FAMILIES["llama3"]).tokenizer
    steps = (Step(observation="", thought="Hm.", action="say\nAction: go"),)
    ambiguous = PLAIN.model_copy(update={"steps": steps})
    code, out = checked(tmp_path, capsys, model(tmp_path / "m", tokenizer), ambiguous)
    assert code == 1
    assert "the action 'say\\nAction: go' would be read back as 'go'" in out


def test_a_model_without_a_usable_template_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family = replace(FAMILIES["llama3"], template="{{ messages[0].content }}")
    tokenizer = renderer(FAMILIES["llama3"]).tokenizer
    tokenizer.chat_template = family.template
    code, _ = checked(tmp_path, capsys, model(tmp_path / "m", tokenizer), PLAIN)
    assert code == 2
