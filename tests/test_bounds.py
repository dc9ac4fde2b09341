"""A setting out of its bounds gives one line and exit code 2, and nothing is written."""

from pathlib import Path

import pytest

from stepagent import cli
from stepagent.algorithms.sft import SFTConfig
from stepagent.bounds import Above, AtLeast, Between, OutOfBounds
from stepagent.model.updates import OptimizerConfig
from stepagent.scratch.pretraining import PretrainConfig
from stepagent.scratch.small_model import TinyConfig

SEEDS, TIMES = "from 0 to 4294967295", "above 0 and at most 1,000,000"


@pytest.mark.parametrize(
    ("command", "option", "value", "rule"),
    [
        ("train", "--inspection.decoding.temperature", "nan", "at least 0"),
        ("train", "--evaluation.decoding.temperature", "-1", "at least 0"),
        ("train", "--inspection.decoding.temperature", "inf", "at least 0"),
        ("train", "--inspection.decoding.max-new-tokens", "0", "at least 1"),
        ("train", "--inspection.num-actions", "0", "at least 1"),
        ("train", "--evaluation.num-parallel", "0", "at least 1"),
        ("train", "--sft.epochs", "0", "at least 1"),
        ("train", "--sft.batch-size", "0", "at least 1"),
        ("train", "--sft.optimizer.learning-rate", "nan", "above 0"),
        ("train", "--sft.optimizer.weight-decay", "-1", "at least 0"),
        ("train", "--sft.optimizer.warmup-share", "2", "from 0 to 1"),
        ("train", "--sft.optimizer.max-grad-norm", "0", "above 0"),
        ("train", "--implicit.beta", "nan", "above 0"),
        ("train", "--implicit.epochs", "0", "at least 1"),
        ("train", "--inverse.ppo.clip-range", "nan", "above 0"),
        ("train", "--inverse.ppo.ent-coef", "nan", "at least 0"),
        ("train", "--grpo.kl-coef", "inf", "at least 0"),
        ("train", "--rounds", "0", "at least 1"),
        ("train", "--seed", "-1", SEEDS),
        ("train", "--data.test", "0", "at least 1"),
        ("train", "--task.engine.timeout-seconds", "1e+300", TIMES),
        ("sft", "--sft.epochs", "0", "at least 1"),
        ("sft", "--sft.epochs", "-1", "at least 0"),
        ("sft", "--seed", "-1", SEEDS),
        ("sft", "--seed", "4294967296", SEEDS),
        ("inspect", "--num-actions", "0", "at least 1"),
        ("inspect", "--seed", "-5", SEEDS),
        ("reflect", "--implicit.batch-size", "0", "at least 1"),
        ("reflect", "--rounds", "0", "at least 1"),
        ("reflect", "--seed", "-1", SEEDS),
        ("evaluate", "--seed", "-5", SEEDS),
        ("evaluate", "--decoding.max-new-tokens", "0", "at least 1"),
        ("evaluate", "--engine.timeout-seconds", "nan", TIMES),
        ("collect", "--engine.timeout-seconds", "0", TIMES),
        ("collect", "--seed", "-1", SEEDS),
    ],
)  # fmt: skip
def test_a_number_out_of_bounds_is_refused_in_one_line_before_anything_is_written(
    command: str, option: str, value: str, rule: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    given = {
        "train": ["smoke"],
        "sft": ["--demonstrations", "d.jsonl"],
        "inspect": ["--policy", "novice", "--demonstrations", "d.jsonl"],
        "reflect": ["--method", "implicit", "--policy", "novice", "--demonstrations", "d.jsonl",
                    "--held-out", "h.jsonl"],
        "evaluate": ["scienceworld", "--policy", "novice"],
        "collect": ["scienceworld"],
    }  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        cli.main([command, *given[command], "--out", "new/out.jsonl", option, value])
    assert ended.value.code == 2
    name = option.rpartition(".")[2].lstrip("-").replace("-", "_")
    assert capsys.readouterr().err == f"stepagent: {name} must be {rule}, not {value}\n"
    assert list(tmp_path.iterdir()) == []


def test_bounds_are_numbers_and_never_nan() -> None:
    nan, inf = float("nan"), float("inf")
    assert 0 in AtLeast(0) and -1e-9 not in AtLeast(0)
    assert 1e-9 in Above(0) and 0 not in Above(0) and 3 not in Above(0, 2)
    assert 0 in Between(0, 1) and 1 in Between(0, 1) and 1.1 not in Between(0, 1)
    for limit in (AtLeast(0), Above(0), Above(0, 2), Between(0, 1)):
        assert nan not in limit and inf not in limit


def test_pretraining_may_be_left_out() -> None:
    off = SFTConfig(epochs=0, optimizer=OptimizerConfig(learning_rate=1e-3))
    assert PretrainConfig(reading=off, copying=off).reading.epochs == 0


def test_a_tiny_model_has_heads_that_positions_can_turn() -> None:
    with pytest.raises(OutOfBounds, match=r"^hidden_size must be a multiple .* 14, not 32"):
        TinyConfig(hidden_size=32, num_heads=7)
