"""The command line: help, errors of one line, and every command on files of the world of boxes."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fakes import BoxWorld, demonstrations, hear_ctrl_c
from stepagent import cli
from stepagent.commands import train as train_command
from stepagent.commands import whole_run
from stepagent.commands.models import load_policy
from stepagent.commands.parsing import UsageError
from stepagent.experiment.config import TASKS
from stepagent.experiment.recipes import RECIPES
from stepagent.experiment.run_json import read_json
from stepagent.trajectories import read_jsonl, write_jsonl
from stepagent.types import PracticedStep

UNTAUGHT = ["--tiny.hidden-size", "32", "--tiny.num-layers", "1", "--tiny.vocab-size", "320"]
TINY = [*UNTAUGHT, "--pretrain.copying.epochs", "1"]
SHORT = ["--inspection.decoding.max-new-tokens", "8"]
LEARNABLE = ["--inverse.discriminator.warmup-epochs", "40"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with demonstrations, held-out demonstrations and a novice."""
    folder = tmp_path_factory.mktemp("work")
    write_jsonl(folder / "demonstrations.jsonl", demonstrations()[::8])
    write_jsonl(folder / "held-out.jsonl", demonstrations("dev")[::4])
    call("sft", "--demonstrations", folder / "demonstrations.jsonl", "--out", folder / "novice",
         "--sft.epochs", "2", *TINY)  # fmt: skip
    return folder


def call(*args: object) -> None:
    cli.main([str(arg) for arg in args])


Fails = Callable[..., str]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Runs a command that must exit with code 2; returns its standard error."""

    def run(*args: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            call(*args)
        assert ended.value.code == 2
        captured = capsys.readouterr()
        # tyro draws its error messages with other colours and lines, also on standard error.
        return captured.err

    return run


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from stepagent.cli import main; main(['--help']); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.endswith("False\n")
    for command in cli.COMMANDS:
        assert f"\n  {command} " in done.stdout


def test_without_the_extras_only_commands_that_need_them_fail(tmp_path: Path) -> None:
    extras = ("alfworld", "bm25s", "fast_downward", "fastapi", "ijson", "openai", "pyarrow",
              "rapidfuzz", "Stemmer", "textworld", "uvicorn", "websockets")  # fmt: skip
    code = (
        "import sys, importlib; from stepagent import cli\n"
        f"sys.modules.update(dict.fromkeys({extras!r}))\n"
        "for module, _ in cli.COMMANDS.values():\n"
        "    importlib.import_module(f'stepagent.commands.{module}')\n"
        "cli.main(['tasks'])\n"
        "cli.main(['collect', 'webshop', '--out', 'new.jsonl'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.startswith("scienceworld      ready, needs no data\n")
    assert done.returncode == 2
    wanted = "stepagent: this needs the package ...; install it: pip install 'stepagent[webshop]'\n"
    assert re.sub(r"package \w+;", "package ...;", done.stderr) == wanted


@pytest.mark.parametrize("command", [*cli.COMMANDS, "train smoke"])
def test_every_command_has_help_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        call(*command.split(), "--help")
    except SystemExit as ended:
        assert ended.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"For example: stepagent {command.split()[0]} " in text
    assert "Reads " in text
    assert "{None}" not in text or "default: None" in text


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("command", ["collect", "evaluate", "serve"])
def test_every_task_has_its_own_options_there(
    command: str, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        call(command, task, "--help")
    assert ended.value.code == 0
    assert "--step-limit" in capsys.readouterr().out


def test_every_option_of_a_recipe_has_a_help_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call("train", "smoke", "--help")
    boxes = (line.strip("│| ") for line in capsys.readouterr().out.splitlines())
    lines = [line for line in boxes if line.strip("─╭╮╰╯-+")]
    options = [i for i, line in enumerate(lines) if line.startswith("--")]
    assert len(options) > 50
    no_help = [lines[i] for i in options if lines[i + 1].startswith(("(default", "(req", "--"))]
    assert no_help == []


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_task_that_exists(name: str) -> None:
    assert RECIPES[name].task.make_task().name in TASKS


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian"], "stepagent: unknown command 'trian'; did you mean 'train'? allowed: train, "),
        (["train", "smok"], "stepagent: unknown recipe 'smok'; did you mean 'smoke'? allowed: "),
        (
            ["train", "smoke", "--out", "{tmp}/run", "--task.task-types", "find-plan"],
            "stepagent: unknown task type 'find-plan': did you mean 'find-plant'",
        ),
        (
            ["train", "smoke", "--out", "{tmp}/run", "--model", "{tmp}/none"],
            "stepagent: {tmp}/none: no such folder; expected a Hugging Face model folder",
        ),
        (
            ["train", "smoke", "--out", "{tmp}/run", "--lora.rank", "4"],
            "stepagent: --lora.rank: a model made from scratch has nothing to adapt",
        ),
        (
            ["export-model", "{work}/novice", "--discriminator", "-o", "{tmp}/out"],
            "stepagent: {work}/novice: has no discriminator",
        ),
        (
            ["convert", "{work}/held-out.jsonl", "-o", "{tmp}/out"],
            "stepagent: {work}/held-out.jsonl: not a GGUF file",
        ),
        (["report", "{tmp}/none"], "stepagent: {tmp}/none: no such folder"),
        (["report", "{work}"], "stepagent: {work}: not a run folder"),
        (
            ["sft", "--demonstrations", "{tmp}/none.jsonl", "--out", "{tmp}/new"],
            "stepagent: {tmp}/none.jsonl: no such file",
        ),
        (
            ["sft", "--demonstrations", "{work}/novice/config.json", "--out", "{tmp}/new"],
            "stepagent: {work}/novice/config.json:1: not JSON",
        ),
        (
            ["sft", "--demonstrations", "{work}/held-out.jsonl", "--out", "{work}/novice"],
            "stepagent: {work}/novice: already exists; choose a new folder",
        ),
        (
            ["sft", "--demonstrations", "{work}/held-out.jsonl", "--model", "{work}",
             "--out", "{tmp}/new"],
            "stepagent: {work}: not a model folder: it has no config.json",
        ),
        (
            ["inspect", "--policy", "{tmp}/none.gguf", "--demonstrations",
             "{work}/held-out.jsonl", "--out", "{tmp}/steps.jsonl"],
            "stepagent: {tmp}/none.gguf: no such folder; expected",
        ),
        (
            ["inspect", "--policy", "{work}", "--demonstrations", "{work}/held-out.jsonl",
             "--out", "{tmp}/steps.jsonl"],
            "stepagent: {work}: not a model folder: it has no config.json",
        ),
        (
            ["reflect", "--method", "implicit", "--policy", "{work}/novice", "--demonstrations",
             "{work}/held-out.jsonl", "--held-out", "{tmp}/none", "--out", "{tmp}/out"],
            "stepagent: {tmp}/none: no such file",
        ),
        (
            ["reflect", "--method", "inverse", "--policy", "{work}/novice", "--demonstrations",
             "{work}/held-out.jsonl", "--held-out", "{work}/held-out.jsonl", "--out", "{tmp}/out",
             "--inverse.states", "rollout"],
            "stepagent: --inverse.states rollout: reflect has no environment to act in",
        ),
        (
            ["evaluate", "scienceworld", "--policy", "{work}/novice", "--simplification", "eazy",
             "--out", "{tmp}/episodes.jsonl"],
            "stepagent: unknown simplification 'eazy': did you mean 'easy'?",
        ),
        (
            ["collect", "musique", "--out", "{tmp}/d.jsonl"],
            "stepagent: {nowhere}/musique/questions.sqlite: the data of musique is missing; run: "
            "stepagent download musique",
        ),
        (
            ["collect", "webshop", "--out", "{tmp}/d.jsonl"],
            "stepagent: {nowhere}/webshop/",
        ),
    ],
)  # fmt: skip
def test_a_users_error_is_one_line_and_leaves_nothing(
    args: list[str],
    message: str,
    work: Path,
    tmp_path: Path,
    fails: Fails,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STEPAGENT_TASK_DATA", "/nowhere")
    error = fails(*(arg.format(tmp=tmp_path, work=work) for arg in args))
    assert error.startswith(message.format(tmp=tmp_path, work=work, nowhere="/nowhere"))
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_is_an_error_that_suggests_the_right_one(
    tmp_path: Path, fails: Fails
) -> None:
    error = fails("train", "smoke", "--out", tmp_path / "run", "--sft.epoch", "3")
    assert "--sft.epoch" in error and "--sft.epochs INT" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--lora.rank", "-1", "--lora.rank must be at least 0, not -1"),
        ("--compute.token-budget", "0", "--compute.token-budget must be at least 1, not 0"),
    ],
)
def test_an_invalid_setting_is_refused_before_anything_is_done(
    option: str, value: str, message: str, tmp_path: Path, fails: Fails
) -> None:
    error = fails("train", "smoke", "--out", tmp_path / "run", option, value)
    assert message in " ".join(error.replace("│", " ").split())  # it may be broken into lines
    assert list(tmp_path.iterdir()) == []


def test_damaged_weights_are_an_error_in_one_line(work: Path, tmp_path: Path, fails: Fails) -> None:
    for file in (work / "novice").iterdir():
        (tmp_path / file.name).write_bytes(
            file.read_bytes()[: 100 if "weights" in file.name else None]
        )
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
    error = fails("inspect", "--policy", tmp_path, "--demonstrations", work / "held-out.jsonl",
                  "--out", tmp_path / "steps.jsonl")  # fmt: skip
    assert error.startswith(f"stepagent: {tmp_path}: cannot open the model: ")
    assert error.count("\n") == 1


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, work: Path) -> None:
    monkeypatch.setattr("stepagent.commands.report.write_report", lambda *_: int("x"))
    with pytest.raises(ValueError, match="invalid literal"):
        call("report", work)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "out of memory"),
        (RecursionError("maximum recursion depth exceeded"), "a value is nested too deeply; "),
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nto"), "out of memory: CUDA out of mem"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you"), "out of memory: Default"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (UsageError("bad\x1b[2J\n\u202ename"), "bad\\x1b[2J \\u202ename"),
    ],
)
def test_an_error_of_the_user_is_one_line_without_escape_sequences(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch, work: Path, fails: Fails
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("stepagent.commands.report.write_report", fail)
    line = fails("report", work)
    assert line.startswith(f"stepagent: {told}") and line.count("\n") == 1


def test_standard_output_on_a_full_disk_is_an_error_of_one_line() -> None:
    line = f"{shlex.quote(sys.executable)} -m stepagent --help > /dev/full"
    found = subprocess.run(["sh", "-c", line], capture_output=True)
    assert (found.returncode, found.stderr) == (2, b"stepagent: No space left on device\n")


def test_a_terminal_encoding_without_a_character_is_no_error() -> None:
    code = (
        "import sys; from stepagent import cli; cli._call = lambda *_: print('\u00fc'); cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=True,
    )
    assert done.stdout == b"\\xfc\n"


def test_ctrl_c_ends_with_130_and_prints_how_to_resume(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(whole_run, "train", interrupt)
    with pytest.raises(SystemExit) as ended:
        call("train", "smoke", "--out", tmp_path / "a run")
    assert ended.value.code == 130
    told = f"to resume: stepagent train smoke --out '{tmp_path}/a run' --resume\n"
    assert capsys.readouterr().err.endswith(told)


@pytest.mark.parametrize("command", ["sft", "inspect"])
def test_lines_that_are_skipped_are_listed(
    command: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (work / "held-out.jsonl").read_text()
    (tmp_path / "bad.jsonl").write_text("nonsense\n" + lines)
    more = {"sft": ["--sft.epochs", "1", *TINY], "inspect": ["--policy", work / "novice"]}
    call(command, "--demonstrations", tmp_path / "bad.jsonl", "--out", tmp_path / "new",
         "--skip-invalid", *more[command])  # fmt: skip
    out = capsys.readouterr().out
    assert f"left out: {tmp_path}/bad.jsonl:1: not JSON" in out
    assert "left out: 1 lines in all" in out


def test_a_model_from_scratch_is_pretrained_before_it_is_fine_tuned(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = []
    for epochs in ("0", "1"):
        call("sft", "--demonstrations", work / "demonstrations.jsonl", "--out", tmp_path / epochs,
             "--sft.epochs", "1", *UNTAUGHT, "--pretrain.reading.epochs", epochs,
             "--pretrain.copying.epochs", epochs)  # fmt: skip
        losses.append(float(re.search(r"loss (\S+) to", capsys.readouterr().out)[1]))  # type: ignore[index]
    assert losses[1] < losses[0] - 0.1


def test_inspection_writes_one_practised_step_for_each_step(
    work: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    call("inspect", "--policy", work / "novice", "--demonstrations", work / "held-out.jsonl",
         "--out", tmp_path / "steps.jsonl", "--num-actions", "2",
         "--decoding.max-new-tokens", "8")  # fmt: skip
    steps = read_jsonl(tmp_path / "steps.jsonl", PracticedStep)
    assert len(steps) == sum(len(t.steps) for t in demonstrations("dev")[::4])
    assert all(len(step.agent_actions) == 2 for step in steps)
    captured = capfd.readouterr()
    assert captured.err == ""  # no progress bars or warnings of other libraries
    assert captured.out.startswith(f"{tmp_path}/steps.jsonl: {len(steps)} practised steps")


@pytest.mark.parametrize("method", ["implicit", "inverse"])
def test_reflection_on_files_writes_a_policy_for_each_round_and_resumes(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    args = ["reflect", "--method", method, "--policy", work / "novice", "--demonstrations",
            work / "demonstrations.jsonl", "--held-out", work / "held-out.jsonl", "--out",
            tmp_path / "out", "--rounds", "2", *SHORT, *LEARNABLE]  # fmt: skip
    call(*args)
    first = capsys.readouterr().out
    table = [line.split() for line in first.splitlines() if line[:5].strip().isdigit()]
    assert [row[0] for row in table] == ["0", "1", "2"]
    assert ("-" in table[0]) == (method == "implicit")  # only a discriminator measures divergence
    before = (work / "novice" / "model.safetensors").read_bytes()
    for unit in (f"{method}-round1", f"{method}-round2"):
        folder = tmp_path / "out" / "units" / unit
        load_policy(folder)
        after = (folder / "model.safetensors").read_bytes()
        assert after != before
        before = after
        assert (folder / "discriminator").exists() == (method == "inverse")
    call(*args, "--resume")
    assert capsys.readouterr().out == first


def test_training_from_a_recipe_prints_results_and_writes_the_report(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_command, "open_task", lambda _: BoxWorld())
    args = ["train", "smoke", "--out", tmp_path / "run", "--methods", "implicit", "--data.dev", "1",
            "--model.vocab-size", "320", "--inspection.decoding.max-new-tokens", "4",
            "--evaluation.decoding.max-new-tokens", "4", "--seed", "3"]  # fmt: skip
    call(*args)
    out = capsys.readouterr().out
    assert "Implicit reflection does NOT beat SFT" in out
    assert f"\nReport: {tmp_path}/run/report.html\nPolicy: {tmp_path}/run/units/" in out
    assert (tmp_path / "run" / "report.html").stat().st_size > 1000
    config = read_json(tmp_path / "run" / "config.json")
    assert (config["recipe"], config["seed"]) == ("smoke", 3)
    assert config["config"]["model"]["vocab_size"] == 320
    call(*args, "--resume")
    assert capsys.readouterr().out == out


@pytest.mark.slow
def test_the_smoke_recipe_runs_in_the_real_engine_and_survives_ctrl_c(tmp_path: Path) -> None:
    args = [sys.executable, "-m", "stepagent", "train", "smoke", "--out", str(tmp_path / "run")]
    with subprocess.Popen(
        args,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
    ) as running:
        while not (tmp_path / "run" / "units" / "sft-dev").exists():
            assert running.poll() is None
            time.sleep(0.05)
        for _ in range(5):  # an interrupt during a destructor is lost: press Ctrl-C again
            os.killpg(running.pid, signal.SIGINT)  # like a terminal, to the engine as well
            try:
                _, error = running.communicate(timeout=15)
                break
            except subprocess.TimeoutExpired:
                continue
    assert running.returncode == 130, error
    assert error.splitlines()[-1].startswith("stepagent: stopped; to resume: stepagent train smoke")
    call("train", "smoke", "--out", tmp_path / "run", "--resume")
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {row["method"] for row in rows} == {"sft", "sft_more", "implicit", "inverse"}


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_no_error(closed: str) -> None:
    command = f"{sys.executable} -m stepagent import --help {closed}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
