"""Outputs: no input or existing file is replaced unasked; a full disk is an error of one line."""

import errno
import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from fakes import demonstrations, random_policy
from stepagent import cli
from stepagent.commands.episode_journal import Journal, JournalError
from stepagent.commands.outputs import check_file, check_folder
from stepagent.commands.parsing import UsageError
from stepagent.experiment.run import Run
from stepagent.experiment.run_json import RunError
from stepagent.files import locks
from stepagent.files.atomic import atomic_folder, atomic_write
from stepagent.files.locks import Taken, lock
from stepagent.trajectories import read_trajectories, write_jsonl, write_lines

TINY = ["--tiny.hidden-size", "32", "--tiny.num-layers", "1", "--tiny.vocab-size", "320",
        "--sft.epochs", "1", "--pretrain.copying.epochs", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "novice"
    random_policy(scale=2.0).save(folder)
    return folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "demonstrations.jsonl"
    write_jsonl(path, demonstrations()[:2])
    return path


@pytest.fixture(autouse=True)
def no_old_stream() -> None:
    """Removes the log handler of an earlier call, whose standard error is closed."""
    logging.getLogger("stepagent").handlers.clear()


def call(*args: object) -> None:
    cli.main([str(arg) for arg in args])


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must exit with code 2 and one line; returns the line."""

    def run(*args: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            call(*args)
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        return error

    return run


def command(name: str, file: Path, out: object, policy: Path) -> list[object]:
    return {
        "export": ["export", file, "--format", "messages", "-o", out],
        "import": ["import", file, "--format", "messages", "-o", out],
        "inspect": ["inspect", "--policy", policy, "--demonstrations", file, "--out", out],
        "collect": ["collect", "scienceworld", "--expert", "openai:m", "--few-shot", 1,
                    "--demonstrations", file, "--out", out],
        "evaluate": ["evaluate", "scienceworld", "--policy", "openai:m", "--few-shot", 1,
                     "--demonstrations", file, "--out", out],
        "sft": ["sft", "--demonstrations", file, "--out", out, *TINY],
        "sft-model": ["sft", "--demonstrations", file, "--model", policy, "--out", out],
        "export-model": ["export-model", policy, "-o", out],
        "convert": ["convert", file, "-o", out],
    }[name]  # fmt: skip


FILES = ("export", "import", "inspect", "collect", "evaluate")
FOLDERS = ("sft", "sft-model", "export-model", "convert")


def other_names(file: Path) -> Iterator[Path]:
    """Other names of the same file: spellings and links."""
    yield file
    yield file.parent / "." / file.name
    yield file.parent / "x" / ".." / file.name
    yield Path(os.path.relpath(file))
    (file.parent / "folder").symlink_to(file.parent)
    yield file.parent / "folder" / file.name
    (file.parent / "hard").hardlink_to(file)
    yield file.parent / "hard"
    (file.parent / "soft").symlink_to(file)
    yield file.parent / "soft"


@pytest.mark.parametrize("name", FILES)
def test_an_input_is_never_overwritten_under_any_name(
    name: str, file: Path, policy: Path, fails: Callable[..., str]
) -> None:
    (file.parent / "x").mkdir()
    before = file.read_bytes()
    for out in other_names(file):
        error = fails(*command(name, file, out, policy), "--overwrite")
        assert "it is the input" in error
    assert file.read_bytes() == before
    assert (file.parent / "soft").is_symlink()
    assert file.stat().st_ino == (file.parent / "hard").stat().st_ino


@pytest.mark.parametrize("name", FILES)
def test_the_journal_is_not_an_input_either(
    name: str, file: Path, policy: Path, fails: Callable[..., str]
) -> None:
    if name not in ("collect", "evaluate"):
        return
    journal = file.rename(file.parent / "out.jsonl.episodes")
    before = journal.read_bytes()
    error = fails(*command(name, journal, journal.with_suffix(""), policy))
    assert "it is the input" in error
    assert journal.read_bytes() == before


@pytest.mark.parametrize("name", FILES)
def test_an_existing_file_is_kept_without_overwrite(
    name: str, file: Path, policy: Path, fails: Callable[..., str]
) -> None:
    old = file.parent / "old"
    old.write_text("three years of work")
    error = fails(*command(name, file, old, policy))
    assert error == f"stepagent: {old}: already exists; choose another file or add --overwrite\n"
    assert old.read_text() == "three years of work"


def test_an_existing_file_is_replaced_with_overwrite(file: Path) -> None:
    out = file.parent / "out"
    call("export", file, "--format", "messages", "-o", out)
    first = out.read_bytes()
    out.write_text("old")
    call("export", file, "--format", "messages", "-o", out, "--overwrite")
    assert out.read_bytes() == first
    assert {path.name for path in file.parent.iterdir()} == {"out", file.name}


def make_special(kind: str, path: Path) -> None:
    if kind == "device":
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3))
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            here = Path.cwd()
            os.chdir(path.parent)  # a socket's path must be short
            server.bind(path.name)
            os.chdir(here)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        (path.parent / "target").write_text("kept")
        path.symlink_to(path.parent / "target")
    else:
        path.symlink_to(path.parent / "nothing")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("device", "is not a regular file"),
        ("fifo", "is not a regular file"),
        ("socket", "is not a regular file"),
        ("folder", "is a folder; expected a file"),
        ("link", "is a symbolic link; give the path of the file itself"),
        ("dangling link", "is a symbolic link"),
    ],
)
@pytest.mark.parametrize("name", FILES)
def test_only_regular_files_are_written(
    name: str, kind: str, message: str, file: Path, policy: Path, fails: Callable[..., str]
) -> None:
    out = file.parent / "out"
    try:
        make_special(kind, out)
    except PermissionError:
        pytest.skip("only root makes device nodes")
    before = out.lstat()
    assert message in fails(*command(name, file, out, policy), "--overwrite")
    assert (out.lstat().st_ino, out.lstat().st_mode) == (before.st_ino, before.st_mode)
    if kind == "link":
        assert (file.parent / "target").read_text() == "kept"


@pytest.mark.parametrize("name", FILES + FOLDERS)
def test_a_file_in_place_of_a_parent_folder_is_named(
    name: str, file: Path, policy: Path, fails: Callable[..., str]
) -> None:
    (file.parent / "above").write_text("")
    error = fails(*command(name, file, file.parent / "above" / "x" / "out", policy))
    assert error.startswith(f"stepagent: {file.parent}/above: is a file; expected a folder for ")


@pytest.mark.parametrize("name", FOLDERS)
def test_an_existing_folder_is_kept_unless_it_is_only_a_model_and_overwrite_is_given(
    name: str, file: Path, policy: Path, fails: Callable[..., str]
) -> None:
    old = file.parent / "old"
    shutil.copytree(policy, old)
    assert "already exists; choose a new" in fails(*command(name, file, old, policy))
    (old / "notes").mkdir()
    error = fails(*command(name, file, old, policy), "--overwrite")
    assert "holds other files than a model" in error
    assert (old / "notes").is_dir()
    for extra in ("link", "file"):
        path = file.parent / extra
        path.symlink_to(old) if extra == "link" else path.write_text("")
        assert str(path) in fails(*command(name, file, path, policy), "--overwrite")
    assert (old / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["sft-model", "export-model"])
def test_a_model_is_not_replaced_by_its_own_export(
    name: str, file: Path, policy: Path, fails: Callable[..., str]
) -> None:
    own = shutil.copytree(policy, file.parent / "own")
    for out in (own, file.parent / "." / "own", own / "config.json", file.parent):
        error = fails(*command(name, file, out, own), "--overwrite")
        assert "already exists" in error or "it contains the input" in error
    assert {p.name for p in own.iterdir()} == {p.name for p in policy.iterdir()}


def test_an_existing_model_is_replaced_as_a_whole(file: Path, policy: Path) -> None:
    old = shutil.copytree(policy, file.parent / "old")
    (old / "adapter_config.json").write_text("{}")
    call("sft", "--demonstrations", file, "--out", old, *TINY, "--overwrite")
    assert not (old / "adapter_config.json").exists()
    assert {path.name for path in file.parent.iterdir()} == {"old", file.name}


def test_nothing_is_written_into_a_unit_of_a_run(
    file: Path, policy: Path, fails: Callable[..., str], tmp_path: Path
) -> None:
    with Run(tmp_path / "run", {}, resume=False) as run, run.unit("sft") as unit:
        shutil.copytree(policy, unit, dirs_exist_ok=True)
    unit = tmp_path / "run" / "units" / "sft"
    assert "inside the input" in fails(
        "inspect", "--policy", unit, "--demonstrations", file, "--out", unit / "steps.jsonl"
    )
    assert "inside the input" in fails("export-model", unit, "-o", unit.parent / "mine")
    assert "inside the input" in fails("report", tmp_path / "run", "--out", unit / "page.html")


def test_a_report_replaces_a_report_but_nothing_else(
    tmp_path: Path, fails: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with Run(folder, {}, resume=False) as run, run.unit("one"):
        run.log(stage="sft", round=0, phase="train", loss=1.0)
    page = folder / "report.html"
    call("report", folder)
    first = page.read_bytes()
    call("report", folder)
    assert page.read_bytes() == first
    page.write_text("my own notes")
    assert "already exists; choose another file or add --overwrite" in fails("report", folder)
    for part in ("config.json", "metrics.jsonl", "episodes/x", "units/one/manifest.json"):
        error = fails("report", folder, "--out", folder / part, "--overwrite")
        assert "the input" in error
    assert page.read_text() == "my own notes"
    call("report", folder, "--overwrite")
    assert page.read_bytes() == first
    Run(folder, {}, resume=True).close()
    assert "no such folder" in fails("report", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_train_does_not_replace_a_page_that_is_not_its_own(
    tmp_path: Path, fails: Callable[..., str]
) -> None:
    Run(tmp_path / "run", {}, resume=False).close()
    (tmp_path / "run" / "report.html").write_text("my own notes")
    assert "already exists" in fails("train", "smoke", "--out", tmp_path / "run", "--resume")
    assert (tmp_path / "run" / "report.html").read_text() == "my own notes"


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Simulates a full disk: no file may grow beyond `size` bytes."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("name", ["export", "inspect", "sft"])
def test_a_full_disk_is_an_error_of_one_line_and_leaves_only_the_old_file(
    name: str, file: Path, policy: Path, fails: Callable[..., str]
) -> None:
    out = file.parent / "out"
    if name == "sft":
        shutil.copytree(policy, out)
    else:
        out.write_text("old")
    before = {path.name for path in out.iterdir()} if name == "sft" else out.read_text()
    with full_disk(500):
        error = fails(*command(name, file, out, policy), "--overwrite")
    assert error == f"stepagent: {out}: File too large\n"
    assert {path.name for path in file.parent.iterdir()} == {"out", file.name}
    after = {path.name for path in out.iterdir()} if name == "sft" else out.read_text()
    assert after == before


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left (os error 28)"),
        Exception("No space left on device (os error 28)"),
    ],
)
@pytest.mark.parametrize("write", [atomic_write, atomic_folder])
def test_a_full_disk_has_the_same_message_from_every_library(
    tmp_path: Path, write: Any, error: Exception
) -> None:
    with pytest.raises(OSError) as raised, write(tmp_path / "out"):
        raise error
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_other_disk_errors_keep_their_message(tmp_path: Path) -> None:
    for error in (OSError(errno.ECONNRESET, "reset"), OSError(errno.ENOSPC, "full", "other")):
        with pytest.raises(OSError) as raised, atomic_write(tmp_path / "out"):
            raise error
        assert raised.value is error


def test_a_run_resumed_after_a_full_disk_writes_the_same_files(tmp_path: Path) -> None:
    def work(run: Run) -> None:
        for unit in ("one", "two"):
            if not run.is_done(unit):
                with run.unit(unit):
                    for k in range(20):
                        run.log(stage="sft", round=0, phase="train", loss=1.0 * k)
                    run.write_records(f"episodes/{unit}.jsonl", demonstrations()[:1])

    with Run(tmp_path / "whole", {}, resume=False) as run:
        work(run)
    size = (tmp_path / "whole" / "metrics.jsonl").stat().st_size
    with (
        pytest.raises(OSError) as raised,
        Run(tmp_path / "run", {}, resume=False) as run,
        full_disk(3 * size // 4),
    ):
        work(run)
    assert raised.value.filename == str(tmp_path / "run" / "metrics.jsonl")
    with Run(tmp_path / "run", {}, resume=True) as run:
        assert run.is_done("one") and not run.is_done("two")
        work(run)
    for name in ("units/one/manifest.json", "units/two/manifest.json", "episodes/two.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_folder_without_write_permission_is_an_error_of_one_line(
    file: Path, policy: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root can write anywhere
    error = fails(*command("export", file, file.parent / "out", policy))
    assert error == f"stepagent: {file.parent}: is not writable; choose another folder\n"


@pytest.mark.parametrize("number", sorted(locks.NO_LOCKS))
def test_a_file_system_without_locks_is_used_with_one_warning(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", none)
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        with Run(tmp_path / "run", {}, resume=True) as run, run.unit(f"unit{len(run.units.names)}"):
            run.log(stage="sft", round=0, phase="train")
    with Journal(tmp_path / "run" / "journal") as journal:
        journal.add(demonstrations()[0])
    assert len(read_trajectories(tmp_path / "run" / "journal").trajectories) == 1
    told = [record.message for record in caplog.records if "no locks" in record.message]
    assert told == [
        f"{tmp_path}/run: this file system has no locks; make sure that no other process "
        "writes there"
    ]


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from stepagent.files.locks import lock\n"
        "held = lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    path = tmp_path / ".lock"
    path.write_text("its content stays")
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(Taken):
            lock(path)
        os.kill(process.pid, signal.SIGKILL)
    lock(path).release()
    assert path.read_text() == "its content stays"


def test_a_second_process_cannot_open_a_run_or_journal(tmp_path: Path) -> None:
    with Run(tmp_path / "run", {}, resume=False), pytest.raises(RunError, match="another process"):
        Run(tmp_path / "run", {}, resume=True)
    with Journal(tmp_path / "j"), pytest.raises(JournalError, match="another process"):
        Journal(tmp_path / "j")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(JournalError, match="is not a regular file"):
        Journal(tmp_path / "fifo")


def test_messages_escape_the_names_of_outputs(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31m"
    path.write_text("")
    for check in (check_file, check_folder):
        with pytest.raises(UsageError) as raised:
            check(path)
        assert "\x1b" not in str(raised.value)


def test_a_file_that_appears_while_a_command_runs_is_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"

    def lines() -> Iterator[str]:
        yield "mine"
        file.write_text("somebody else's")

    with pytest.raises(OSError, match="was created meanwhile"):
        write_lines(file, lines(), replace=False)
    assert file.read_text() == "somebody else's"
    assert [*tmp_path.iterdir()] == [file]
    write_lines(file, ["mine"])
    assert file.read_text() == "mine\n"


def test_without_hard_links_nothing_is_replaced_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr("os.link", refuse)
    file = tmp_path / "out.jsonl"
    write_lines(file, ["mine"], replace=False)
    with pytest.raises(OSError, match="was created meanwhile"):
        write_lines(file, ["again"], replace=False)
    assert file.read_text() == "mine\n"


def test_a_folder_with_a_file_of_the_users_is_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    random_policy().save(folder)
    check_folder(folder, overwrite=True)
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match="holds other files than a model"):
        check_folder(folder, overwrite=True)


@pytest.mark.skipif(sys.platform != "linux", reason="names of other systems are always text")
@pytest.mark.parametrize("command", ["sft", "train"])
def test_a_folder_whose_name_is_not_text_is_refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    args = ["smoke"] if command == "train" else ["--demonstrations", "d.jsonl"]
    with pytest.raises(SystemExit) as ended:
        cli.main([command, *args, "--out", out])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("stepagent: ") and error.count("\n") == 1
    assert "a name that is not UTF-8; name another folder" in error
    assert list(tmp_path.iterdir()) == []
