"""The examples run; with sizes that only tell whether they do, since the full ones take minutes."""

import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import stepagent
from stepagent import cli

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = (
    "--model.hidden-size 32 --model.num-layers 1 --model.num-heads 2 --model.vocab-size 300 "
    "--pretrain.reading.epochs 1 --pretrain.copying.epochs 1 --sft.epochs 1 --rounds 1 "
    "--methods implicit --inspection.decoding.max-new-tokens 8 "
    "--evaluation.decoding.max-new-tokens 8"
)


def run(
    name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """What an example prints; it runs in this process, which has loaded torch already."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    monkeypatch.setattr(stepagent, "deterministic", lambda: None)  # other tests go on after it
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


@pytest.fixture
def household(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The environment of the first example."""
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    return runpy.run_path(str(EXAMPLES / "own_environment.py"))["HOUSEHOLD"]


def test_the_expert_of_the_own_environment_solves_every_item(household: Any) -> None:
    found = stepagent.collect(household, [f"seed/{n}" for n in range(30)])
    assert not found.failed
    assert max(len(t.steps) for t in found.trajectories) < household.step_limit


def test_the_own_environment_opens_by_its_place_as_the_command_line_opens_it() -> None:
    config = stepagent.EnvConfig(env=f"{EXAMPLES}/own_environment.py:HOUSEHOLD")
    assert stepagent.open_environment(config).expert("seed/0").success


def test_a_wrong_action_in_the_own_environment_can_be_made_good(household: Any) -> None:
    expert = household.expert("seed/1")
    env = household.make_env()
    env.reset(options={"item": "seed/1"})
    for wrong in ("go to garden", "take fork", "sing"):
        env.step(wrong)
    for step in expert.steps:
        observation, _, terminated, _, info = env.step(step.action)
    assert terminated and info["success"] and observation == expert.final_observation


def test_own_environment_prints_success_before_and_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    printed = run(
        "own_environment.py", "--quick", "--out", str(out), monkeypatch=monkeypatch, capsys=capsys
    )
    assert "novice: " in printed and "expert: " in printed
    assert "Implicit reflection" in printed and (out / "report.html").is_file()


def test_new_method_stands_in_one_table_with_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run(
        "new_method.py", "--quick", "--out", str(tmp_path / "run"),
        monkeypatch=monkeypatch, capsys=capsys,
    )  # fmt: skip
    rows = [line.split("  ")[0] for line in printed.splitlines()[:5]]
    assert {"SFT, continued", "Implicit reflection", "correction"} <= set(rows)


def test_python_api_saves_the_policy_of_each_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join((EXAMPLES / "messages.jsonl").read_text().splitlines(True)[:4]))
    printed = run(
        "python_api.py", "--demonstrations", str(few), "--rounds", "1", "--out", str(tmp_path),
        monkeypatch=monkeypatch, capsys=capsys,
    )  # fmt: skip
    assert "novice: " in printed and "round 1: " in printed and "largest step reward" in printed
    policy = stepagent.Policy.load(tmp_path / "round1")
    assert stepagent.likeness(policy, stepagent.read_trajectories(few)).expert_logprob < 0


STAND_IN = """#!/bin/sh
for word; do printf '%s\\n' "$word"; done > "$CALLS/asking"
mv "$CALLS/asking" "$CALLS/asked"
until [ -e "$CALLS/said" ]; do sleep 0.05; done
cat "$CALLS/said"
rm "$CALLS/said"
"""
"""A `stepagent` that lets this process do the work, which has loaded the libraries already."""


def test_own_data_exports_the_policy_that_the_run_chose(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few, run = tmp_path / "few.jsonl", tmp_path / "run"
    few.write_text("".join((EXAMPLES / "messages.jsonl").read_text().splitlines(True)[:5]))
    (tmp_path / "stepagent").write_text(STAND_IN)
    (tmp_path / "stepagent").chmod(0o755)
    own = {"CALLS": str(tmp_path), "MESSAGES": str(few), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script, called = ["sh", str(EXAMPLES / "own_data.sh"), str(run), *SMALL.split()], []
    with subprocess.Popen(script, env=os.environ | own, stdout=subprocess.DEVNULL) as process:
        try:
            while process.poll() is None:
                if not (tmp_path / "asked").exists():
                    time.sleep(0.05)
                    continue
                called.append((tmp_path / "asked").read_text().splitlines())
                (tmp_path / "asked").unlink()
                cli.main(called[-1])
                (tmp_path / "saying").write_text(capsys.readouterr().out)
                (tmp_path / "saying").rename(tmp_path / "said")
        finally:
            process.kill()
    assert process.returncode == 0
    (trained, exported) = called
    assert trained[:2] == ["train", "own"] and exported[0] == "export-model"
    chosen = json.loads((run / "units" / "implicit-test" / "best_round.json").read_text())
    unit = f"implicit-round{chosen}" if chosen else "sft"
    assert exported[1] == str(run / "units" / unit)
    assert stepagent.Policy.load(f"{run}-agent").context > 0


def test_the_own_environment_trains_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = "--data.sft 2 --data.reflection 3 --data.shared 2 --data.dev 2 --data.test 2"
    place = f"{EXAMPLES}/own_environment.py:HOUSEHOLD"
    options = ["--env", place, "--model", "scratch", "--out", str(tmp_path / "run")]
    cli.main(["train", "own", *options, *SMALL.split(), *sizes.split()])
    printed = capsys.readouterr().out
    assert "data: collected from the environment's expert" in printed
    assert "Implicit reflection" in printed and f"Policy: {tmp_path}/run/units/" in printed


@pytest.mark.parametrize(("name", "most"), [("python_api.py", 60), ("new_method.py", 40)])
def test_examples_stay_short(name: str, most: int) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) < most
