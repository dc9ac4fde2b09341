"""What a run wrote is trusted by hash: on resume, by the report and the results, and by others."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes import demonstrations, random_policy
from stepagent import cli
from stepagent.experiment.config import TrainConfig
from stepagent.experiment.inputs import model_input
from stepagent.experiment.manifest import check_policy
from stepagent.experiment.novice import check_novice, open_policy, take_novice
from stepagent.experiment.results import write_results
from stepagent.experiment.run import Run
from stepagent.experiment.run_json import RunError, read_json, write_config, write_json
from stepagent.model.lora import LoRAConfig
from stepagent.model.policy import Policy
from stepagent.report.page import write_report
from stepagent.report.runs import ReportError, read_run
from stepagent.tasks.scienceworld.task import ScienceWorldConfig
from stepagent.trajectories import write_jsonl
from stepagent.types import AgentAction, PracticedStep, Step, Trajectory

CONFIG = dict.fromkeys(
    ("task", "data", "model", "lora", "compute", "pretrain", "sft", "evaluation", "seed"), 0
)
SETTINGS: dict[str, Any] = {"recipe": "boxes", "seed": 0, "protocol": {}, "config": CONFIG}
LEARNT = "implicit-round1"


def episode(item: int, score: float = 50) -> Trajectory:
    step = Step(observation="A box.", action="open it")
    return Trajectory(
        id=f"near/{item}", task="boxes", instruction="Go.", steps=(step,), score=score
    )


def practised(item: int) -> PracticedStep:
    action = AgentAction(text="wait", token_ids=(1,), logprob=-1.0)
    return PracticedStep(
        trajectory_id=f"near/{item}", step_index=0, expert_action="open it", agent_actions=(action,)
    )


def make_run(folder: Path, *, resume: bool = False) -> Path:
    """A run in miniature, with a file of every kind that there is."""
    with Run(folder, SETTINGS, resume=resume) as run:
        go_on(run)
    return folder


def go_on(run: Run) -> None:
    """Makes the units that are missing."""
    if not run.is_done("data"):
        with run.unit("data") as unit:
            run.write_records("demonstrations.jsonl", [episode(i) for i in range(3)])
            run.write_records("practice/demonstrations-dev.jsonl", [episode(9)])
            write_json(unit / "panels.json", {"dev": ["near/9"], "test": ["near/1"]})
            run.record_data("panels", {"test": {"items": 3}})
    for name in ("sft", LEARNT):
        if not run.is_done(name):
            with run.unit(name) as unit:
                for k in range(3):
                    run.log(stage=name, round=0, phase="train", loss=2.0 - k)
                (unit / "model.safetensors").write_bytes(bytes(range(256)))
                (unit / "discriminator").mkdir()
                (unit / "discriminator" / "model.safetensors").write_bytes(b"12345678")
                (unit / "value_head.safetensors").write_bytes(b"1234")
                write_json(unit / "dev.json", {"score": 50.0})
                run.write_records(f"practice/{name}.jsonl", [practised(i) for i in range(3)])
    for name in ("sft", "implicit"):
        if not run.is_done(f"{name}-test"):
            with run.unit(f"{name}-test") as unit:
                run.write_records(f"episodes/{name}-test.jsonl", [episode(i) for i in range(3)])
                write_json(unit / "best_round.json", 0)
                write_json(unit / "metrics.json", {})
    if not run.is_done("results"):
        write_results(0, run)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy, which is a run that was moved at the same time."""
    return shutil.copytree(made, tmp_path / "run")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def drop_line(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:1], *lines[2:]]))


def add_line(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], *lines]))


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def junk(path: Path) -> None:
    path.write_bytes(b"\x00\xff\xfe" * 100)


def deep(path: Path) -> None:
    path.write_bytes(b"[" * 100_000)


WRITTEN = [
    "demonstrations.jsonl",
    "practice/demonstrations-dev.jsonl",
    f"practice/{LEARNT}.jsonl",
    "episodes/sft-test.jsonl",
    "metrics.jsonl",
    "results.json",
    "summary.md",
    "config.json",
    "units/data/panels.json",
    "units/data/manifest.json",
    "units/sft/model.safetensors",
    "units/sft/discriminator/model.safetensors",
    f"units/{LEARNT}/value_head.safetensors",
    f"units/{LEARNT}/dev.json",
    f"units/{LEARNT}/manifest.json",
    "units/implicit-test/best_round.json",
    "units/implicit-test/metrics.json",
    "units/results/manifest.json",
]
LINES = [name for name in WRITTEN if name.endswith(".jsonl") and "dev" not in name]


def refused(folder: Path) -> str:
    """The line by which a resumed run is refused; nothing in its folder has changed by then."""
    before = contents(folder)
    with pytest.raises(RunError) as raised:
        Run(folder, SETTINGS, resume=True)
    assert contents(folder) == before
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("change", [flip, cut_off, junk, Path.unlink, deep])
def test_a_changed_file_is_named_before_a_run_goes_on(
    folder: Path, name: str, change: Callable[[Path], None]
) -> None:
    change(folder / name)
    line = refused(folder)
    assert line.startswith(f"{folder / name}:")
    assert "restore it" in line or "delete the line" in line


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("change", [drop_line, add_line])
def test_a_line_that_was_taken_out_or_added_is_found(
    folder: Path, name: str, change: Callable[[Path], None]
) -> None:
    change(folder / name)
    line = refused(folder)
    assert line.startswith(f"{folder / name}:")
    with pytest.raises(ReportError) as raised:
        read_run(folder)
    assert str(raised.value) == line


@pytest.mark.parametrize("name", [name for name in WRITTEN if not name.endswith(".safetensors")])
@pytest.mark.parametrize("change", [flip, cut_off, junk, Path.unlink, deep])
def test_the_report_shows_nothing_that_was_changed(
    folder: Path, name: str, change: Callable[[Path], None]
) -> None:
    change(folder / name)
    with pytest.raises(ReportError) as raised:
        write_report([folder], folder / "report.html")
    assert str(raised.value).startswith(f"{folder / name}:")
    assert "\n" not in str(raised.value)
    assert not (folder / "report.html").exists()


def test_the_line_names_the_unit_and_what_to_do_and_that_helps(folder: Path, made: Path) -> None:
    drop_line(folder / "episodes" / "sft-test.jsonl")
    assert refused(folder) == (
        f"{folder}/episodes/sft-test.jsonl: not as its unit wrote it; restore it, or delete "
        "units/sft-test, units/implicit-test, units/results so that --resume makes them again"
    )
    for unit in ("sft-test", "implicit-test", "results"):
        shutil.rmtree(folder / "units" / unit)
    assert "sft-test" in " ".join(read_run(folder).notes)  # is left out until then
    make_run(folder, resume=True)
    theirs, mine = contents(made), contents(folder)
    assert {n for n in mine | theirs if mine.get(n) != theirs.get(n)} == set()


@pytest.mark.parametrize("unit", ["data", "sft", "sft-test"])
def test_a_unit_that_was_taken_away_from_among_the_others_is_missed(
    folder: Path, unit: str
) -> None:
    shutil.rmtree(folder / "units" / unit)
    line = refused(folder)
    assert line.startswith(f"{folder}/units/{unit}: missing, unlike later units; restore it, or ")
    with pytest.raises(ReportError):
        read_run(folder)


@pytest.mark.parametrize("name", ["units/sft/adapter_config.json", f"units/{LEARNT}/a/b.json"])
def test_a_file_that_was_added_to_a_unit_is_found(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")
    assert refused(folder).startswith(f"{folder / name}: not written by unit ")
    with pytest.raises(ReportError):
        read_run(folder)


def test_a_file_of_no_unit_is_neither_shown_nor_in_the_results(folder: Path, made: Path) -> None:
    (folder / "episodes" / "inverse-test.jsonl").write_text(episode(1).model_dump_json() + "\n")
    view = read_run(folder)
    assert [part.method for part in view.episodes] == ["implicit", "sft"]
    assert "episodes/inverse-test.jsonl is left out: no finished unit wrote it" in view.notes
    make_run(folder, resume=True)
    assert (folder / "results.json").read_bytes() == (made / "results.json").read_bytes()


def test_two_units_whose_folders_were_exchanged_are_found(folder: Path) -> None:
    units = folder / "units"
    (units / "sft").rename(units / "x")
    (units / LEARNT).rename(units / "sft")
    (units / "x").rename(units / LEARNT)
    assert refused(folder).startswith(f"{folder}/units/sft/manifest.json: ")


@pytest.mark.parametrize(
    "change",
    [
        {"data": {}},
        {"versions": {}},
        {"created": "yesterday"},
        {"units": {}},
        {"units": []},
        {"sha256": "ab"},
        {"sha256": None},
    ],
)
def test_a_changed_value_of_the_config_is_found(folder: Path, change: dict[str, Any]) -> None:
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | change)
    assert refused(folder) == f"{folder}/config.json: changed since StepAgent wrote it; restore it"


@pytest.mark.parametrize("text", ["[]", "3", '"x"', "null"])
def test_a_config_of_another_form_is_one_line(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert refused(folder).startswith(f"{folder}/config.json: not an object")


@pytest.mark.parametrize("text", ["[]", "{}", '{"files": [], "rows": ""}', '{"files": {"a": 1}}'])
def test_a_manifest_of_another_form_is_one_line(folder: Path, text: str) -> None:
    (folder / "units" / "sft" / "manifest.json").write_text(text)
    with pytest.raises(RunError, match=r"manifest\.json: not the manifest of a unit"):
        check_policy(folder / "units" / "sft")


def test_a_manifest_cannot_name_files_outside_of_the_run(folder: Path) -> None:
    path = folder / "units" / "sft" / "manifest.json"
    for name in ("../secret", "/etc/passwd"):
        write_json(path, {"files": {name: "ab"}, "rows": ""})
        with pytest.raises(RunError, match="not the manifest of a unit"):
            check_policy(path.parent)


def test_a_run_of_an_earlier_version_is_shown_unchecked_and_not_resumed(folder: Path) -> None:
    config = read_json(folder / "config.json")
    del config["sha256"], config["units"]
    for manifest in folder.glob("units/*/manifest.json"):
        manifest.unlink()
    write_json(folder / "config.json", config)
    assert "an earlier version of StepAgent began it and kept no hashes" in refused(folder)
    with pytest.raises(RunError, match="an earlier version"):
        check_novice(folder, SETTINGS)
    assert any("not checked" in note for note in read_run(folder).notes)
    write_report([folder], folder / "report.html")
    assert "not checked" in (folder / "report.html").read_text()


def test_a_config_without_its_hash_does_not_turn_a_run_into_an_old_one(folder: Path) -> None:
    config = read_json(folder / "config.json")
    del config["sha256"]
    write_json(folder / "config.json", config)
    refused(folder)
    with pytest.raises(ReportError, match=r"config\.json: without its hashes; restore it"):
        read_run(folder)


@pytest.mark.parametrize(
    "name",
    ["demonstrations.jsonl", "units/sft/model.safetensors", "episodes/sft-test.jsonl",
     "metrics.jsonl", "units/data/panels.json", "units/sft/manifest.json", "config.json"],
)  # fmt: skip
@pytest.mark.parametrize("change", [flip, Path.unlink])
def test_a_novice_is_not_taken_from_changed_files(
    folder: Path, name: str, change: Callable[[Path], None]
) -> None:
    change(folder / name)
    with pytest.raises(RunError, match=r"^[^\n]+$") as raised:
        check_novice(folder, SETTINGS)
    assert str(folder) in str(raised.value)


def test_a_novice_that_is_taken_over_is_checked_in_its_new_run(
    folder: Path, tmp_path: Path
) -> None:
    check_novice(folder, SETTINGS)
    with Run(tmp_path / "new", SETTINGS, resume=False) as run:
        take_novice(run, folder)
        assert run.units.names == ["data", "sft", "sft-test"]
        mine, theirs = run.units.manifests, read_json(folder / "units" / "sft" / "manifest.json")
        assert mine["sft"].files == theirs["files"] and mine["sft"].rows == theirs["rows"]
    make_run(tmp_path / "new", resume=True)


def test_a_copy_of_a_unit_is_checked_where_it_is_used(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder / "units" / "sft", tmp_path / "novice")
    check_policy(copy)
    flip(copy / "model.safetensors")
    with pytest.raises(RunError, match=r"novice/model\.safetensors: not as its unit wrote it"):
        check_policy(copy)


def test_a_kill_between_a_unit_and_its_line_in_the_config_loses_nothing(folder: Path) -> None:
    before = contents(folder)
    shutil.rmtree(folder / "units" / "results")
    make_run(folder, resume=True)
    with Run(folder, SETTINGS, resume=True) as run:
        config = run.config | {"units": dict([*run.config["units"].items()][:-1])}
    write_config(folder, config)
    with Run(folder, SETTINGS, resume=True) as run:
        assert run.is_done("results")
    assert contents(folder) == before


def test_rows_of_no_finished_unit_are_shown_only_at_the_end(folder: Path) -> None:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    row = json.dumps({"unit": "ghost", "stage": "implicit", "round": 1, "phase": "dev", "score": 9})
    path.write_text("".join([*lines[:2], row + "\n", *lines[2:]]))
    view = read_run(folder)
    assert not any("score" in m.values for m in view.metrics)
    assert "1 rows of metrics.jsonl are left out: no finished unit wrote them" in view.notes
    path.write_text("".join([*lines, row + "\n"]))
    assert read_run(folder).metrics[-1].values["score"] == 9


def test_a_damaged_row_after_the_last_finished_unit_is_dropped(folder: Path) -> None:
    before = contents(folder)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"unit": "x"}\n\x00\n[]\n{"unit": ["x"]}\n{"unit')
    Run(folder, SETTINGS, resume=True).close()
    assert contents(folder) == before


def test_a_unit_that_failed_and_is_tried_again_has_only_its_last_rows(tmp_path: Path) -> None:
    with Run(tmp_path, SETTINGS, resume=True) as run:
        for fails in (True, False):
            try:
                with run.unit("one"):
                    run.log(stage="sft", round=0, phase="train", loss=float(fails))
                    if fails:
                        raise KeyError
            except KeyError:
                continue
    with Run(tmp_path, SETTINGS, resume=True) as run:
        assert [row["loss"] for row in run.metrics()] == [0.0]


def test_a_file_beside_a_unit_is_written_within_one(tmp_path: Path) -> None:
    with Run(tmp_path, SETTINGS, resume=True) as run:
        with pytest.raises(RuntimeError, match="outside of a unit"):
            run.write_records("episodes/sft-test.jsonl", [])
        with pytest.raises(RunError, match="written by no finished unit"):
            run.read_records("episodes/sft-test.jsonl", Trajectory)


def test_names_in_a_run_folder_cannot_steer_a_terminal(folder: Path) -> None:
    (folder / "units" / "sft" / "a\x1b[31m\n").write_text("")
    line = refused(folder)
    assert "\x1b" not in line and "\\x1b[31m\\n" in line


def test_equal_runs_have_equal_manifests_whatever_time_they_took(
    made: Path, tmp_path: Path
) -> None:
    again = contents(make_run(tmp_path / "again"))
    theirs = contents(made)
    different = {name for name in theirs if theirs[name] != again[name]}
    assert different <= {"config.json", "metrics.jsonl"}
    assert os.path.getsize(made / "units" / "results" / "manifest.json") > 0


def call(*args: object) -> None:
    cli.main([str(arg) for arg in args])


@pytest.mark.parametrize("adapter", [False, True], ids=["whole model", "adapter"])
def test_reflection_goes_on_after_everything_was_moved(
    adapter: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    random_policy(scale=2.0).save(old / "novice")
    write_jsonl(old / "demonstrations.jsonl", demonstrations()[:3])
    write_jsonl(old / "held-out.jsonl", demonstrations("dev")[:2])
    args = ["reflect", "--method", "implicit", "--rounds", 2, *(["--lora.rank", 2] * adapter),
            "--inspection.decoding.max-new-tokens", 4, "--policy"]  # fmt: skip

    def files(folder: Path) -> list[object]:
        return [folder / "novice", "--demonstrations", folder / "demonstrations.jsonl",
                "--held-out", folder / "held-out.jsonl", "--out", folder / "run"]  # fmt: skip

    call(*args, *files(old))
    whole = contents(old / "run")
    shutil.rmtree(old / "run" / "units" / "implicit-round2")
    old.rename(new)
    monkeypatch.chdir(new)
    call(*args, *files(Path()), "--resume")
    found = contents(new / "run")
    different = {name for name in whole if whole[name] != found[name]}
    allowed = {"config.json", "metrics.jsonl"}
    if adapter:  # it names the place of its base
        unit = "units/implicit-round2"
        allowed |= {f"{unit}/adapter_config.json", f"{unit}/manifest.json"}
    assert different <= allowed
    with open(new / "demonstrations.jsonl", "ab") as file:
        file.write(demonstrations()[5].model_dump_json().encode() + b"\n")
    with pytest.raises(SystemExit):
        call(*args, *files(new), "--resume")
    # Also other weights, under the name that the old ones had.
    write_jsonl(new / "demonstrations.jsonl", demonstrations()[:3])
    random_policy(scale=1.0).save(new / "novice")
    with pytest.raises(SystemExit):
        call(*args, *files(new), "--resume")


def test_an_adapter_of_a_run_is_put_on_its_base_where_that_is_now(tmp_path: Path) -> None:
    random_policy(scale=2.0).save(tmp_path / "old")
    lora = LoRAConfig(rank=2)
    config = TrainConfig(
        task=ScienceWorldConfig(), model=str(tmp_path / "old"), lora=lora, methods=()
    )
    with Run(tmp_path / "run", {}, resume=False) as run:
        with run.unit("sft") as unit:
            before = Policy.load(tmp_path / "old", lora=lora, seed=3)
            for parameter in before.parameters():
                parameter.data.fill_(0.01)
            before.save(unit)
        (tmp_path / "old").rename(tmp_path / "new")
        found = open_policy(replace(config, model=str(tmp_path / "new")), run, "sft")
    assert all(bool((p == 0.01).all()) for p in found.parameters())


@pytest.mark.parametrize("command", ["inspect", "export-model"])
def test_flipped_bits_in_a_unit_are_found_by_whoever_opens_it(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Run(tmp_path / "run", {}, resume=False) as run, run.unit("sft") as unit:
        random_policy(scale=2.0).save(unit)
    unit = tmp_path / "run" / "units" / "sft"
    flip(unit / "model.safetensors")
    write_jsonl(tmp_path / "d.jsonl", demonstrations()[:1])
    args = {
        "inspect": ["--policy", unit, "--demonstrations", tmp_path / "d.jsonl", "--out",
                    tmp_path / "out"],
        "export-model": [unit, "-o", tmp_path / "out"],
    }  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        call(command, *args[command])
    assert ended.value.code == 2
    assert f"{unit}/model.safetensors: not as its unit wrote it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_folder_is_known_by_content_not_by_place(tmp_path: Path) -> None:
    random_policy(scale=2.0).save(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "README.md").write_text("notes")
    first = model_input(str(tmp_path / "a"))
    assert model_input(str(tmp_path / "b")) == first
    flip(tmp_path / "b" / "model.safetensors")
    assert model_input(str(tmp_path / "b")) != first
    assert model_input("org/model") == "org/model"


def test_another_files_values_in_the_place_of_the_config_are_no_old_run(folder: Path) -> None:
    write_json(folder / "config.json", {})
    assert "config.json: not the settings of a run; restore it" in refused(folder)
