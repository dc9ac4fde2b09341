"""The benchmarks of speed, tiny: each question has an answer, and notices when a side differs."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from speed import __main__ as program
from speed import generate, gpu, growth, measuring, precision, rollouts, stages, training, trl
from speed.material import Setup, add_adapter, mistakes, open_policy, practised_tree, rows_of, walk
from speed.measuring import Row, Unequal, check_close, exponent, show

from stepagent.scratch.small_model import TinyConfig, build_tiny_model

SIZE = TinyConfig(vocab_size=300, hidden_size=32, num_layers=2, num_heads=2, context=2048)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    folder = tmp_path_factory.mktemp("speed")
    small, real = folder / "small", folder / "real"
    for seed, model in enumerate((small, real)):
        build_tiny_model([walk(8, 12)], SIZE, seed=seed, folder=model)
        add_adapter(model, folder / f"{model.name}-lora")
    return Setup(
        small=small,
        real=real,
        adapters={model: folder / f"{model.name}-lora" for model in (small, real)},
        agents={model: model for model in (small, real)},
        short=walk(4, 12),
        long=walk(8, 12),
        precisions=("float32",),
        repeats=1,
    )


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has a process of its own runs in this one, which is faster."""

    def call(function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)

    monkeypatch.setattr(training, "alone", call)
    monkeypatch.setattr(growth, "alone", call)


def plan(setup: Setup, loss: training.Loss, **changes: Any) -> training.Training:
    same = training.Training(
        model=setup.small, adapter=None, trajectory=setup.short, loss=loss, precision="float32",
        updates=2,
    )  # fmt: skip
    return replace(same, **changes)


# Sides


def test_the_agents_mistakes_are_other_actions_of_the_expert() -> None:
    trajectory = walk(3, 12)
    first, second, third = (step.action for step in trajectory.steps)
    assert mistakes(trajectory) == [second, third, first]


def test_rows_hold_each_step_with_its_whole_history(setup: Setup) -> None:
    policy = open_policy(setup.small, "float32")
    rendered = policy.render(setup.short)
    rows = rows_of(practised_tree(policy, setup.short))
    assert [row["prompt_ids"] for row in rows] == list(rendered.states)
    assert [tuple(row["chosen_ids"]) for row in rows] == list(rendered.actions)
    said = [policy.renderer.action(text) for text in mistakes(setup.short)]
    assert [tuple(row["rejected_ids"]) for row in rows] == said


@pytest.mark.parametrize(("loss", "ids"), [("dpo", "rejected_ids"), ("sft", "input_ids")])
def test_trl_has_our_losses_but_not_with_another_token(
    setup: Setup, loss: training.Loss, ids: str
) -> None:
    wanted = plan(setup, loss)
    mine, rows = training.ours(wanted), training.rows(wanted)
    other = training.trl(wanted, rows, 2)
    assert training.check_equal(wanted, mine, other) < 1e-4
    assert len(mine.seconds) == len(other.seconds) == 1
    assert mine.peak_mb >= mine.rise_mb >= 0
    rows[0][ids][-3] += 1
    with pytest.raises(Unequal, match=f"{loss} of small, float32"):
        training.check_equal(wanted, mine, training.trl(wanted, rows, 2))


def test_trl_has_our_losses_with_lora_in_bfloat16(setup: Setup) -> None:
    wanted = plan(setup, "dpo", adapter=setup.adapters[setup.small], precision="bfloat16")
    other = training.trl(wanted, training.rows(wanted), 4)
    assert training.check_equal(wanted, training.ours(wanted), other) < 5e-2


@pytest.mark.slow
def test_a_process_of_its_own_returns_what_the_function_returns() -> None:
    assert measuring.alone(exponent, [1, 2, 4], [1, 4, 16]) == 2.0
    assert 0 < measuring.alone(measuring.peak_mb) < 10_000


# Questions


def test_training_beside_trl(setup: Setup, here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def compare(wanted: training.Training, batch_size: int, updates: int, every: int) -> Row:
        asked.append((wanted.model, len(wanted.trajectory.steps), batch_size, updates, every))
        return {"seconds": 1.0}

    monkeypatch.setattr(trl, "best_batch_size", lambda wanted: 2)
    monkeypatch.setattr(trl, "side_by_side", compare)
    rows = list(trl.answer(setup))
    # Both kinds of training of the short trajectory, LoRA of the long one, but no SFT of the real.
    assert len(rows) == len(asked) == 11
    assert asked.count((setup.small, 4, 2, 3, 1)) == 4
    assert asked.count((setup.small, 8, 2, 3, 1)) == 2
    assert asked[0] == (setup.real, 4, 2, 2, 1)
    assert asked.count((setup.real, 4, 2, 1, 1)) == 3
    assert asked.count((setup.real, 8, 2, 1, 4)) == 1
    assert {(row["loss"], row["trained"]) for row in rows} == {
        (loss, kind) for loss in ("dpo", "sft") for kind in ("LoRA", "whole")
    }


def test_both_sides_are_compared_in_turn(
    setup: Setup, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = plan(setup, "dpo")
    assert training.best_batch_size(wanted) in (1, 2, 4)
    row: Any = training.side_by_side(wanted, 2, 1, 1)
    assert row["loss differs"] < 1e-4 and row["batch"] == 2
    assert len(row["all"]["ours"]["losses"]) == 2 and len(row["all"]["trl"]["losses"]) == 1
    half: Any = training.side_by_side(wanted, 2, 1, 2)
    assert half["TRL's"] == "1 in 2" and half["TRL"] > 0
    other = training.ours(replace(wanted, trajectory=setup.long))
    monkeypatch.setattr(training, "trl", lambda *_: other)
    with pytest.raises(Unequal, match="dpo of small"):
        training.side_by_side(wanted, 2, 1, 1)


def test_practice_beside_generate(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    row = generate.compare(setup.small, [setup.short], "float32", 1, None)
    assert row["sampled"] > 4 and row["batch"] in generate.BATCH_SIZES
    write = generate.generate

    def wrong(*args: Any) -> list[tuple[int, ...]]:
        return [(least_likely(setup), *action[1:]) for action in write(*args)]

    monkeypatch.setattr(generate, "generate", wrong)
    with pytest.raises(Unequal, match="actions part"):
        generate.compare(setup.small, [setup.short], "float32", 1, 2)


def least_likely(setup: Setup) -> int:
    """A token that no state is followed by."""
    return len(open_policy(setup.small, "float32").renderer.tokenizer) - 1


def test_an_action_that_is_the_beginning_of_the_other_is_no_tie(setup: Setup) -> None:
    policy = open_policy(setup.small, "float32")
    with pytest.raises(Unequal, match="beginning"):
        generate.check_actions(policy, [[1, 2]], [(3, 4)], [(3,)], 1.0)


def test_rollouts_beside_encoding_again(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    row = rollouts.compare(setup.small, setup.short, "float32", 1)
    assert row["steps"] == 4 and row["ties"] == 0
    monkeypatch.setattr(
        rollouts, "generate", lambda model, states, *_: [(least_likely(setup),)] * len(states)
    )
    with pytest.raises(Unequal, match="actions part"):
        rollouts.compare(setup.small, setup.short, "float32", 1)


def trained(loss: float) -> training.Trained:
    """What a side says that did nothing."""
    return training.Trained(losses=[loss], seconds=[2.0], peak_mb=400.0, rise_mb=100.0)


def test_growth(setup: Setup, here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"loss": 0.5}
    monkeypatch.setattr(growth, "trl", lambda *_: trained(other["loss"]))
    monkeypatch.setattr(growth, "ours", lambda _: trained(0.5))
    rows = list(growth.answer(setup, (2, 3, 4), (128, 256)))
    assert [row["size"] for row in rows] == [2, 3, 4, "exponent", 128, 256, "exponent"]
    assert abs(rows[3]["seconds"]) < 0.01 and rows[-1]["seconds"] is None
    other["loss"] = 0.6
    with pytest.raises(Unequal, match="dpo of small"):
        list(growth.answer(setup, (2,), ()))


def test_growth_leaves_the_other_side_out_where_it_would_take_too_long(
    setup: Setup, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "ours", lambda _: trained(0.5))
    monkeypatch.setattr(growth, "trl", lambda *_: trained(0.5))
    monkeypatch.setattr(growth, "LIMIT", 10.0)
    rows = list(growth.answer(setup, (2, 3, 30, 40), ()))
    # From 3 to 30 the 2 seconds should become 200.
    assert [row["TRL seconds"] is None for row in rows[:4]] == [False, False, True, True]


def test_stages(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(stages.answer(setup, only=("reading", "SFT", "PPO")))
    assert [(row["trained"], row["stage"]) for row in rows] == [
        ("LoRA", "reading"), ("LoRA", "SFT"), ("LoRA", "PPO"), ("whole", "SFT"), ("whole", "PPO"),
    ]  # fmt: skip
    assert [row["with optimizer"] is None for row in rows] == [True, False, False, False, False]
    open_plain = stages.open_plain
    monkeypatch.setattr(stages, "open_plain", lambda *args: changed(open_plain(*args)))
    with pytest.raises(Unequal, match="reading"):
        list(stages.answer(setup))


def changed(model: Any) -> Any:
    """The model with other weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


def test_the_time_up_to_the_optimizers_step_is_a_part_of_the_update(setup: Setup) -> None:
    policy = open_policy(setup.small, "float32")
    wanted = plan(setup, "sft", updates=3)
    until, whole = stages.updates_of(lambda log: training.train(policy, wanted, log))
    assert len(until) == len(whole) == 2
    assert all(0 < a < b for a, b in zip(until, whole, strict=True))


def test_operations_of_a_stage() -> None:
    model: Any = torch.nn.Linear(3, 5, bias=False)
    model.get_output_embeddings = lambda: torch.nn.Linear(2, 3, bias=False)
    model.config = type("Config", (), {"tie_word_embeddings": True})
    stage = stages.Stage(tokens=10, positions=4, trains=True, run=lambda: ([], []))
    # 15 weights, 6 of them the head's: 9 for each token, 6 for each position.
    assert stages.operations(model, stage, frozen=False) == 6 * (9 * 10 + 6 * 4)
    assert stages.operations(model, stage, frozen=True) == 4 * (9 * 10 + 6 * 4)


def test_bfloat16_beside_float32(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(precision.answer(setup)) == []  # without units
    both = replace(setup, precisions=("float32", "bfloat16"))
    rows = list(precision.answer(both))
    assert [row["what"] for row in rows] == ["DPO, LoRA", "DPO, whole model", "practice"]
    opened = precision.open_policy

    def other(source: Path, name: str) -> Any:
        policy = opened(source, name)
        if name == "bfloat16":
            changed(policy.model)
        return policy

    monkeypatch.setattr(precision, "READING_TOLERANCE", {"bfloat16": 0.1})
    monkeypatch.setattr(precision, "open_policy", other)
    with pytest.raises(Unequal, match="LoRA"):
        list(precision.answer(both))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_nothing_to_say_about_one(setup: Setup) -> None:
    assert list(gpu.answer(setup)) == []


# Measuring


def test_exponents_of_a_line_and_of_a_square() -> None:
    assert exponent([1, 2, 4, 8], [3, 6, 12, 24]) == 1.0
    assert exponent([1, 10, 100], [2, 200, 20000]) == 2.0
    assert exponent([1, 2], [1, 2]) is None


def test_what_is_not_close_is_no_result() -> None:
    assert check_close("losses", [1.0, 2.0], [1.0, 2.5], 0.5) == 0.5
    for theirs in ([1.0, 2.6], [1.0], [1.0, float("nan")]):
        with pytest.raises(Unequal, match="losses"):
            check_close("losses", [1.0, 2.0], theirs, 0.5)


def test_a_table_leaves_out_lists_and_marks_what_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows: list[Row] = [
        {"side": "ours", "seconds": 0.25, "all": [1]},
        {"side": "b", "seconds": None},
    ]
    assert show("Speed", iter(rows)) == rows
    printed = capsys.readouterr().out.split("\n")
    assert [line.split() for line in printed[1:5]] == [
        ["Speed"], ["side", "seconds"], ["ours", "0.25"], ["b", "-"],
    ]  # fmt: skip


# The program


def test_the_program_keeps_a_line_for_each_answer_and_asks_only_what_is_open(
    setup: Setup,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = []

    def answer(setup: Setup) -> Iterator[Row]:
        asked.append(1)
        yield {"seconds": 1.5, "all": [1.0, 2.0]}

    monkeypatch.setattr(program, "QUESTIONS", {"one": ("First?", answer)})
    monkeypatch.setattr(program, "prepare", lambda *_: setup)
    monkeypatch.setattr(program, "commit", lambda: "abc")
    monkeypatch.setattr(program, "be_quiet", lambda: None)
    out = tmp_path / "build" / "bench.jsonl"
    monkeypatch.setattr(sys, "argv", ["speed", "--out", str(out)])
    program.main()
    program.main()
    (line,) = map(json.loads, out.read_text().splitlines())
    assert asked == [1] and "already in" in capsys.readouterr().out
    assert line["rows"] == [{"seconds": 1.5, "all": [1.0, 2.0]}]
    assert {"commit", "machine", "seed", "seconds"} <= line.keys()
    assert {"processor", "bfloat16_units", "threads"} <= line["machine"].keys()


def test_every_question_has_a_title() -> None:
    assert list(program.QUESTIONS) == [
        "trl", "generate", "rollouts", "growth", "stages", "precision", "gpu",
    ]  # fmt: skip
    assert all(title and ask for title, ask in program.QUESTIONS.values())
