"""Copies of run folders on storage: complete or not listed, checked, never outside the folder."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from stepagent.experiment.follower import open_run
from stepagent.experiment.run import Run
from stepagent.experiment.run_json import RunError, write_config
from stepagent.experiment.storage import Storage, StorageError
from test_pipeline import assert_same

SETTINGS = {"recipe": "test", "seed": 0, "protocol": {}, "config": {}}
UNITS = ("data", "sft", "implicit-round1")


def opened(folder: Path, storage: object, *, resume: bool = True) -> Run:
    return open_run(folder, SETTINGS, resume=resume, storage=str(storage))


def finish(folder: Path, storage: object, *units: str, resume: bool = True) -> Path:
    """Makes the units that are missing; each writes in all places where units write."""
    with opened(folder, storage, resume=resume) as run:
        for unit in units or UNITS:
            if not run.is_done(unit):
                with run.unit(unit) as made:
                    (made / "discriminator").mkdir()
                    (made / "discriminator" / "model.safetensors").write_bytes(unit.encode() * 9)
                    with run.write(f"practice/{unit}.jsonl") as file:
                        file.write(unit.encode())
                    if unit == "data":
                        with run.write("demonstrations.jsonl") as file:
                            file.write(b"{}\n")
                    run.log(stage=unit, round=0, phase="train", loss=1.0)
    return folder


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A run that nothing disturbed."""
    return finish(tmp_path / "plain", tmp_path / "elsewhere")


@pytest.mark.parametrize("name", [str, Path.as_uri], ids=["path", "url"])
def test_an_empty_folder_is_filled_and_the_run_goes_on(
    whole: Path, tmp_path: Path, name: Callable[[Path], str]
) -> None:
    there = name(tmp_path / "there")
    finish(tmp_path / "first", there, *UNITS[:2], resume=False)
    finish(tmp_path / "second", there)
    for folder in ("second", "there"):
        assert_same(tmp_path / folder, whole)
    # The first machine is back, and takes what the second one did.
    finish(tmp_path / "first", there)
    assert_same(tmp_path / "first", whole)


def test_what_is_written_after_the_last_unit_is_sent_too(tmp_path: Path) -> None:
    with opened(finish(tmp_path / "run", tmp_path / "there"), tmp_path / "there") as run:
        (run.folder / "report.html").write_text("report")
        run.record_data("late", {"known": 1})
    assert (tmp_path / "there" / "report.html").read_text() == "report"
    assert json.loads((tmp_path / "there" / "config.json").read_text())["data"]["late"]


def test_wherever_sending_is_cut_the_run_goes_on_from_finished_units(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = LocalFileSystem.put_file
    left = 0

    def cut(files: LocalFileSystem, source: str, target: str, **more: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            Path(target).write_bytes(Path(source).read_bytes()[:5])
            raise OSError("the line is dead")
        sent(files, source, target, **more)

    cuts = 0
    for number in range(1, 100):
        first, second, there = (tmp_path / f"{name}-{number}" for name in ("a", "b", "there"))
        left = number
        with monkeypatch.context() as patch:
            patch.setattr(LocalFileSystem, "put_file", cut)
            try:
                finish(first, there, resume=False)
            except StorageError as error:
                assert str(error).endswith(": the line is dead")
                cuts += 1
            else:
                break
        # On the same machine, or on another one.
        finish(*((first, there) if number % 2 else (second, there)))
        for folder in (first if number % 2 else second, there):
            assert_same(folder, whole)
    assert cuts > 15


@pytest.mark.parametrize("place", ["file", "elsewhere", "manifest", "config", "rows"])
def test_whatever_was_changed_there_is_noticed(tmp_path: Path, place: str) -> None:
    there = tmp_path / "there"
    finish(tmp_path / "run", there)
    changed = {
        "file": there / "units" / "sft" / "discriminator" / "model.safetensors",
        "elsewhere": there / "practice" / "sft.jsonl",
        "manifest": there / "units" / "sft" / "manifest.json",
        "config": there / "config.json",
        "rows": there / "metrics.jsonl",
    }[place]
    changed.write_bytes(changed.read_bytes().replace(b"sft", b"SFT", 1))
    with pytest.raises((StorageError, RunError)) as told:
        opened(tmp_path / "other", there)
    assert changed.name in str(told.value) and "\n" not in str(told.value)
    if place != "rows":
        assert not (tmp_path / "other" / "units" / "implicit-round1").exists()


@pytest.mark.parametrize(
    "name",
    [
        "../escaped", "/tmp/escaped", "practice/../../escaped", "units/sft/../../../escaped",
        "practice/deeper/file", ".hidden", "practice/.hidden", "config.json", "metrics.jsonl",
        "units", "units/sft", "units/sft/manifest.json", "units/other/file", "units/sft//double",
        "practice\\file", "elsewhere/file", "", ".", "practice/", "nul\0byte",
    ],
)  # fmt: skip
def test_names_from_storage_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    there = tmp_path / "there"
    finish(tmp_path / "run", there, "sft")
    # As somebody would who can write there: everything has the right hash.
    listing = there / "units" / "sft" / "manifest.json"
    manifest = json.loads(listing.read_text())
    manifest["files"][name] = hashlib.sha256(b"evil").hexdigest()
    listing.write_text(json.dumps(manifest))
    config = json.loads((there / "config.json").read_text())
    del config["sha256"]
    config["units"]["sft"] = hashlib.sha256(listing.read_bytes()).hexdigest()
    write_config(there, config)
    before = {path for path in tmp_path.rglob("*") if "other" not in path.parts}
    with pytest.raises((StorageError, RunError)) as told:
        opened(tmp_path / "other", there)
    assert "\n" not in str(told.value)
    assert {path for path in tmp_path.rglob("*") if "other" not in path.parts} == before
    assert not (tmp_path / "other" / "units" / "sft").exists()


@pytest.mark.parametrize("unit", ["../sft", "a/b", ".sft", "..", "", "a\nb"])
def test_units_from_storage_have_plain_names(tmp_path: Path, unit: str) -> None:
    there = tmp_path / "there"
    finish(tmp_path / "run", there, "sft")
    config = json.loads((there / "config.json").read_text())
    del config["sha256"]
    config["units"] = {unit: "0" * 64}
    write_config(there, config)
    with pytest.raises(StorageError, match="not as StepAgent wrote it"):
        Storage(str(there)).config()


def test_a_place_that_is_taken_is_not_written_to(tmp_path: Path) -> None:
    there = tmp_path / "there"
    finish(tmp_path / "run", there)
    with pytest.raises(RunError, match="there: holds a run already; add --resume"):
        opened(tmp_path / "new", there, resume=False)
    with Run(tmp_path / "other", SETTINGS | {"created": "then"}, resume=False) as run:
        run.config["created"] = "then"
        write_config(run.folder, run.config)
    with pytest.raises(RunError, match="other: holds another run than"):
        opened(tmp_path / "other", there)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "mine.txt").touch()
    with pytest.raises(StorageError, match="foreign: not empty and not a run"):
        opened(tmp_path / "new", foreign)
    with pytest.raises(RunError, match="foreign: not empty and not a run"):
        opened(foreign, there)
    assert [path.name for path in foreign.iterdir() if path.name != ".lock"] == ["mine.txt"]


def test_other_units_under_the_same_names_are_not_mixed(tmp_path: Path) -> None:
    there = tmp_path / "there"
    finish(tmp_path / "run", there, "data")
    finish(tmp_path / "second", there, "data", "sft")
    # The first machine lost its storage, and has made another unit meanwhile.
    finish(tmp_path / "run", tmp_path / "elsewhere", "data", "implicit-round1")
    with pytest.raises(RunError, match=r"run: holds another run than .*, or other units"):
        opened(tmp_path / "run", there)


def test_a_folder_that_is_in_use_is_not_filled(tmp_path: Path) -> None:
    there = tmp_path / "there"
    with (
        opened(finish(tmp_path / "run", there), there),
        pytest.raises(RunError, match="run: another process is working in it"),
    ):
        opened(tmp_path / "run", there)


@pytest.mark.parametrize("url", ["nowhere://bucket/run", "https://user:secret@localhost:1/run"])
def test_storage_that_cannot_be_reached_is_one_line_without_passwords(url: str) -> None:
    with pytest.raises(StorageError) as told:
        Storage(url).config()
    assert str(told.value).startswith(url.replace("user:secret@", ""))
    assert "\n" not in str(told.value) and "secret" not in str(told.value)
