"""Untrusted files: pipes, bombs, links, damage and deep nesting each give one line, at once."""

import gzip
import io
import json
import lzma
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mind2web_files import web_task, write_ranks
from qa_fixtures import hotpot
from stepagent.tasks.alfworld import games as alfworld_games
from stepagent.tasks.base import TaskDataError
from stepagent.tasks.data import limited_reader
from stepagent.tasks.data.json_files import read_records
from stepagent.tasks.mind2web import data as mind2web_data
from stepagent.tasks.qa import data as qa_data
from stepagent.tasks.qa.record_files import RecordFile
from stepagent.tasks.webshop import data as webshop_data

PREPARE: dict[str, Any] = {
    "webshop": webshop_data.prepare,
    "alfworld": alfworld_games.prepare,
    "mind2web": mind2web_data.prepare,
    "hotpotqa": partial(qa_data.prepare, "hotpotqa"),
}

FILES = {
    "webshop": ("items_shuffle_1000.json", "items_ins_v2_1000.json"),
    "alfworld": ("valid_seen/pick_and_place_simple-A-None-B-1/trial_1/game.tw-pddl",),
    "mind2web": ("train_0.json", "scores_all_data.pkl"),
    "hotpotqa": ("hotpot_dev_distractor_v1.json",),
}
"""Names under which each task looks for its data."""

CASES = [(task, name) for task, names in FILES.items() for name in names]

GAME = FILES["alfworld"][0]


def refused(task: str, source: Path) -> str:
    """The line with which the task refuses the files in the folder."""
    out = source.parent / "out"
    out.mkdir(exist_ok=True)
    with pytest.raises(TaskDataError) as error:
        PREPARE[task](source, out, skip_invalid=False)
    line = str(error.value)
    assert line.isprintable()
    return line


def around(task: str, name: str, folder: Path) -> Path:
    """Makes a folder with usable files, except the named one, and returns its path."""
    folder.mkdir(exist_ok=True)
    if task == "webshop":
        (folder / "items_shuffle_1000.json").write_text("[]")
        (folder / "items_ins_v2_1000.json").write_text("{}")
    if task == "mind2web":
        web = web_task("train-1")
        (folder / "train_0.json").write_text(json.dumps([web]))
        write_ranks(folder / "scores_all_data.pkl", [web])
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    return path


@pytest.mark.parametrize(("task", "name"), CASES)
def test_a_named_pipe_does_not_block(tmp_path: Path, task: str, name: str) -> None:
    path = around(task, name, tmp_path / "in")
    os.mkfifo(path)
    assert refused(task, tmp_path / "in") == f"{path}: a named pipe; expected a regular file"


@pytest.mark.parametrize(("task", "name"), CASES)
def test_a_device_is_refused(tmp_path: Path, task: str, name: str) -> None:
    path = around(task, name, tmp_path / "in")
    path.symlink_to("/dev/zero")
    assert refused(task, tmp_path / "in") == f"{path}: a device; expected a regular file"


@pytest.mark.parametrize(("task", "name"), CASES)
def test_a_dangling_link_is_named(tmp_path: Path, task: str, name: str) -> None:
    path = around(task, name, tmp_path / "in")
    path.symlink_to(tmp_path / "gone")
    said = "cannot be read: No such file or directory"
    assert refused(task, tmp_path / "in") == f"{path}: {said}"


@pytest.mark.parametrize(("task", "name"), CASES)
def test_a_name_with_escape_sequences_is_shown_escaped(
    tmp_path: Path, task: str, name: str
) -> None:
    folder = tmp_path / "in\x1b[31m"
    os.mkfifo(around(task, name, folder))
    assert "in\\x1b[31m" in refused(task, folder)


DEEP = b"[" * 1_000_000


@pytest.mark.parametrize(
    "content", [DEEP, DEEP + b"]" * len(DEEP), b'[{"a":' * 300_000, b'{"a":' + DEEP]
)
@pytest.mark.parametrize(
    ("task", "name"), [case for case in CASES if case[1] != "scores_all_data.pkl"]
)
def test_deep_json_is_one_line(tmp_path: Path, task: str, name: str, content: bytes) -> None:
    path = around(task, name, tmp_path / "in")
    path.write_bytes(content)
    assert str(path) in refused(task, tmp_path / "in")


def test_deep_json_in_lines_and_in_an_archive_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    path = around("hotpotqa", "hotpot_dev.jsonl", folder)
    path.write_bytes(json.dumps(hotpot(1)).encode() + b"\n" + DEEP)
    assert f"{path}:2: not a JSON object" in refused("hotpotqa", folder)
    path = around("mind2web", "train_0.json", folder)
    with zipfile.ZipFile(folder / "test.zip", "w") as archive:
        archive.writestr("test_task_0.json", DEEP)
    assert "test.zip: test_task_0.json:1: invalid JSON" in refused("mind2web", folder)


def bomb(megabytes: int) -> bytes:
    """Spaces as gzip data, a thousandth of their size; compressed once and repeated."""
    return gzip.compress(b" " * 2**20, 9) * megabytes


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("webshop", "items_shuffle_1000.json"),
        ("webshop", "items_ins_v2_1000.json"),
        ("mind2web", "train_0.json"),
        ("hotpotqa", "hotpot_dev_distractor_v1.json"),
    ],
)
def test_a_gzip_bomb_is_refused_at_the_limit(tmp_path: Path, task: str, name: str) -> None:
    path = around(task, name, tmp_path / "in")
    path.with_name(f"{name}.gz").write_bytes(bomb(100))
    said = refused(task, tmp_path / "in")
    assert f"{name}.gz: " in said
    assert "the limit is 200 times" in said or "has more than 8,388,608 bytes" in said


def zip_bomb(path: Path, name: str, megabytes: int = 80) -> None:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        archive.open(name, "w", force_zip64=True) as file,
    ):
        for _ in range(megabytes):
            file.write(b" " * 2**20)


@pytest.mark.parametrize(
    ("task", "name", "member"),
    [
        ("alfworld", "games.zip", GAME),
        ("mind2web", "test.zip", "test_task_0.json"),
        ("hotpotqa", "hotpot.zip", "hotpot_dev.json"),
        ("hotpotqa", "hotpot.zip", "hotpot_dev.jsonl"),
    ],
)
def test_a_zip_bomb_is_refused_at_the_limit(
    tmp_path: Path, task: str, name: str, member: str
) -> None:
    path = around(task, name, tmp_path / "in")
    zip_bomb(path, member)
    said = refused(task, tmp_path / "in")
    assert member in said
    assert "67,108,864" in said or "8,388,608" in said


@pytest.mark.parametrize("member", [GAME, "other/large.txt"])
@pytest.mark.parametrize("pack", [partial(lzma.compress, preset=0), gzip.compress])
def test_a_bomb_in_a_tar_is_refused_at_the_limit(
    tmp_path: Path, pack: Callable[[bytes], bytes], member: str
) -> None:
    path = around("alfworld", "games.tar.xz", tmp_path / "in")
    info = tarfile.TarInfo(member)
    info.size = 70 * 2**20
    path.write_bytes(pack(info.tobuf() + bytes(info.size) + bytes(1024)))
    assert refused("alfworld", tmp_path / "in").endswith(
        "more than 67,108,864 bytes; the limit is 200 times the compressed size, at least "
        "67,108,864, and at most 2,147,483,648 for a file that is read at once"
    )


def test_a_sparse_member_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = around("alfworld", "games.tar", tmp_path / "in")
    info = tarfile.TarInfo(GAME)
    info.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[483:495] = b"%011o\0" % (10 * 2**30)  # the size with its holes
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    path.write_bytes(bytes(block) + bytes(1024))
    assert "67,108,864 bytes" in refused("alfworld", tmp_path / "in")


def test_an_endless_record_is_refused_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limited_reader, "MAX_RECORD_BYTES", 200_000)
    for name, text in (
        ("hotpot_dev.json", '[{"question": "' + "x" * 300_000 + '"}]'),
        ("hotpot_dev.jsonl", '{"question": "' + "x" * 300_000 + '"}\n'),
    ):
        path = around("hotpotqa", name, tmp_path / name)
        path.write_text(text)
        said = refused("hotpotqa", tmp_path / name)
        assert f"{path}: " in said and "has more than 200,000 bytes; expected fewer" in said


def test_records_that_are_large_only_together_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limited_reader, "MAX_RECORD_BYTES", 200_000)
    text = json.dumps([{"question": "Who?", "filler": "[" * 200 + '"\\'}] * 1500)
    path = tmp_path / "a.json"
    path.write_text(text)
    assert sum(1 for _ in RecordFile(path).records()) == 1500


@given(
    st.recursive(
        st.text('[]{}"\\a') | st.none(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text('[]{}"\\'), inner),
    ),
    st.integers(1, 9),
)
def test_brackets_in_strings_do_not_count_as_nesting(value: Any, piece: int) -> None:
    data, depth = json.dumps(value).encode(), limited_reader._Depth()
    for start in range(0, len(data), piece):
        assert depth.after(data[start : start + piece]) <= limited_reader.MAX_DEPTH
    assert (depth._now, depth._in_text) == (0, False)


@pytest.mark.parametrize("levels", [limited_reader.MAX_DEPTH, limited_reader.MAX_DEPTH + 1])
def test_nesting_is_counted_exactly(tmp_path: Path, levels: int) -> None:
    path = tmp_path / "a.json"
    path.write_text("[" * levels + "]" * levels)
    found = RecordFile(path).records()
    if levels <= limited_reader.MAX_DEPTH:
        assert len(list(found)) == 1
    else:
        with pytest.raises(TaskDataError, match=r"a\.json: JSON nested deeper than 64 levels"):
            list(found)


def tar_with(path: Path, *infos: tarfile.TarInfo) -> None:
    with tarfile.open(path, "w") as tar:
        for info in infos:
            tar.addfile(info, io.BytesIO(bytes(info.size)))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_link_in_a_tar_is_refused(tmp_path: Path, kind: bytes) -> None:
    path = around("alfworld", "games.tar", tmp_path / "in")
    info = tarfile.TarInfo(GAME)
    info.type, info.linkname = kind, "/etc/passwd"
    tar_with(path, info)
    said = f"{path}/{GAME}: a link or a device; expected a regular file"
    assert refused("alfworld", tmp_path / "in") == said


@pytest.mark.parametrize(
    ("task", "name", "member"),
    [
        ("alfworld", "games.zip", GAME),
        ("mind2web", "test.zip", "test_task_0.json"),
        ("hotpotqa", "hotpot.zip", "hotpot_dev.json"),
    ],
)
def test_a_link_in_a_zip_is_refused(tmp_path: Path, task: str, name: str, member: str) -> None:
    path = around(task, name, tmp_path / "in")
    info = zipfile.ZipInfo(member)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    said = f"{path}/{member}: a symbolic link; expected a regular file"
    assert said in refused(task, tmp_path / "in")


@pytest.mark.parametrize("prefix", ["../../", "/", "a/../../", "..\\"])
def test_names_in_archives_cannot_leave_the_folder(tmp_path: Path, prefix: str) -> None:
    game = {
        "pddl_domain": "(define)", "pddl_problem": "(define)", "solvable": True,
        "grammar": '"put {o} in/on {r}"',
    }  # fmt: skip
    folder = tmp_path / "deep" / "in"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "games.zip", "w") as archive:
        archive.writestr(f"{prefix}{GAME}", json.dumps(game))
        archive.writestr(f"{prefix}valid_seen/../../game.tw-pddl", json.dumps(game))
    out = tmp_path / "deep" / "out"
    out.mkdir()
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(out)}
    if prefix != "..\\":  # a name whose first part is not a folder of games
        alfworld_games.prepare(folder, out, skip_invalid=False)
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(out)} == before


@pytest.mark.parametrize("keep", [0.3, 0.7, 0.97])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_a_truncated_tar_is_one_line_and_never_a_part_of_the_games(
    tmp_path: Path, pack: Callable[[bytes], bytes], keep: float
) -> None:
    game = os.urandom(700).hex()
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for number in range(40):
            text = json.dumps(
                {
                    "pddl_domain": "(define)", "pddl_problem": "(define)", "solvable": True,
                    "grammar": '"put {o} in/on {r}"' + game,
                }
            )  # fmt: skip
            info = tarfile.TarInfo(GAME.replace("trial_1", f"trial_{number}"))
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    data = pack(tar.getvalue().rstrip(b"\0") + bytes(1024))
    path = around("alfworld", "games.tar", tmp_path / "in")
    path.write_bytes(data[: int(len(data) * keep)])
    assert f"{path}" in refused("alfworld", tmp_path / "in")


@pytest.mark.parametrize("data", [b"", b"PK", os.urandom(5000), b"PK\5\6" + bytes(9)])
@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("alfworld", "games.zip"),
        ("alfworld", "games.tar.gz"),
        ("mind2web", "test.zip"),
        ("hotpotqa", "hotpot.zip"),
    ],
)
def test_a_file_that_is_no_archive_is_named(
    tmp_path: Path, task: str, name: str, data: bytes
) -> None:
    path = around(task, name, tmp_path / "in")
    path.write_bytes(data)
    assert str(path) in refused(task, tmp_path / "in")


@pytest.mark.parametrize("content", [b"\xff\xfe[", b'{"a": "\xff"}', '["é"]'.encode("utf-16")])
@pytest.mark.parametrize(
    ("task", "name"), [case for case in CASES if case[1] != "scores_all_data.pkl"]
)
def test_a_file_that_is_not_utf_8_is_named(
    tmp_path: Path, task: str, name: str, content: bytes
) -> None:
    path = around(task, name, tmp_path / "in")
    path.write_bytes(content)
    assert str(path) in refused(task, tmp_path / "in")


def test_the_largest_real_file_is_within_the_limits() -> None:
    """327 MB of ALFWorld's games in 4.7 MB of xz, the densest file there is."""
    assert limited_reader.unpacked_limit(4_690_096) > 2 * 327 * 2**20


def test_records_are_read_from_a_compressed_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n'))
    assert [record for _, record in read_records(path)] == [{"a": 1}]


def test_a_reason_in_bytes_is_shown_as_text() -> None:
    error = ValueError(b"lexical error: invalid char\n  (right here) ------^\n")
    assert str(limited_reader.damaged("f.json", error)).endswith(
        "(incomplete file?): lexical error: invalid char"
    )
