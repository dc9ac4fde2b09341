"""Odd and hostile files give one line that says what they are; none blocks."""

import bz2
import gzip
import io
import json
import lzma
import os
import socket
import tarfile
import zipfile
from pathlib import Path

import pytest

from stepagent.files import lines
from stepagent.files.lines import Unreadable, read_text
from stepagent.formats.import_export import read_foreign
from stepagent.trajectories import TrajectoryError, read_jsonl, read_trajectories
from stepagent.types import Trajectory

GOOD = (
    '{"id": "a", "task": "b", "instruction": "c", "steps": [{"observation": "", "action": "d"}]}\n'
)
MESSAGES = (
    '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
)


def errors_of(path: Path) -> str:
    """The error of every reader of the file, which is the same for all."""
    said = set()
    for read in (read_trajectories, lambda path: read_jsonl(path, Trajectory), read_foreign):
        with pytest.raises(TrajectoryError) as caught:
            read(path)
        said.add(str(caught.value))
    (message,) = said
    assert message.isprintable()
    return message.replace(str(path), "FILE", 1)


def zipped() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("expert.jsonl", GOOD)
    return data.getvalue()


def tarred() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("expert.jsonl"))
    return data.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("a.zip", zipped(), "a ZIP archive; expected a file of JSON lines; extract it first"),
        ("a.jsonl.gz", zipped(), "a ZIP archive; expected"),
        ("a.jsonl", zipped(), "a ZIP archive; expected"),
        ("a.tar", tarred(), "a tar archive; expected"),
        ("a.tar.gz", gzip.compress(tarred()), "a tar archive; expected"),
        ("a.jsonl.gz", gzip.compress(zipped()), "a ZIP archive; expected"),
        ("a.bz2", bz2.compress(GOOD.encode()), "a bzip2 file; expected"),
        ("a.jsonl.xz", lzma.compress(GOOD.encode()), "an xz file; expected"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd\x00", "a Zstandard file; expected"),
        ("a.arrow", b"ARROW1\x00\x00", "an Arrow file; expected"),
        ("a.arrow", b"\xff\xff\xff\xff\x10\x00", "an Arrow stream; expected"),
        ("a.jsonl", GOOD.encode("utf-16"), "text in UTF-16; expected UTF-8; convert it first"),
        ("a.jsonl", GOOD.encode("utf-16-le"), "text in UTF-16; expected UTF-8"),
        ("a.json", GOOD.encode("utf-16-be"), "text in UTF-16; expected UTF-8"),
        ("a.jsonl", GOOD.encode("utf-32"), "text in UTF-32; expected UTF-8"),
        ("a.csv", b"observation,action\na,b\n", "a CSV table; expected a file of JSON lines"),
        ("a.CSV.gz", gzip.compress(b"a\tb\n"), "a CSV table; expected"),
        ("a.jsonl", b"\n<!DOCTYPE html>\n", "an HTML or XML page, perhaps a failed download; "),
        ("a.jsonl", b"<html><body>404", "an HTML or XML page"),
        ("a.xml", b'<?xml version="1.0"?>', "an HTML or XML page"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer; expected"),
        ("a.db", b"SQLite format 3\x00", "an SQLite database; expected"),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_named(tmp_path: Path, name: str, data: bytes, what: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert errors_of(tmp_path / name).startswith(f"FILE: {what}")


@pytest.mark.parametrize("name", ["pipe", "socket", "device", "folder", "saved", "a.parquet"])
def test_only_regular_files_are_opened(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "pipe":
        os.mkfifo(path)
    elif name == "device":
        path.symlink_to("/dev/zero")
    elif name in ("folder", "saved", "a.parquet"):
        path.mkdir()
        if name == "saved":
            (path / "dataset_info.json").write_text("{}")
    if name == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            message = errors_of(path)
    else:
        message = errors_of(path)
    what = {
        "saved": "a folder of the datasets library",
        "folder": "a directory",
        "a.parquet": "a directory",
    }.get(name, f"a {name}")  # fmt: skip
    assert message.startswith(f"FILE: {what}; expected a file of JSON lines")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("-", "standard input is not read; expected a file of JSON lines"),
        ("https://example.org/a.jsonl", "a URL; expected a local file, download it first"),
        ("hf://datasets/a/b.jsonl", "a URL; expected a local file, download it first"),
        ("a\0b", "its name contains a NUL; expected a file of JSON lines"),
        ("none.jsonl", "no such file; expected a file of JSON lines"),
    ],
)
def test_an_impossible_file_name_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert errors_of(Path(name)).endswith(f": {what}")


def test_gzip_data_is_unpacked_under_any_name(tmp_path: Path) -> None:
    (tmp_path / "expert.jsonl").write_bytes(gzip.compress(GOOD.encode()))
    assert read_trajectories(tmp_path / "expert.jsonl").trajectories[0].id == "a"


@pytest.mark.parametrize("text", [b"\n", b"\0", b'{"a":"' + b"x" * 99])
def test_a_gzip_bomb_ends_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes
) -> None:
    monkeypatch.setattr(lines, "FREE_OF_RATIO", 2**16)
    monkeypatch.setattr(lines, "MAX_BLANK", 10**5)
    monkeypatch.setattr(lines, "MAX_LINE", 2**18)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(text * (2**23 // len(text))))
    with pytest.raises(
        TrajectoryError, match=r": (its first .* bytes unpack|longer|more than 100,000 bl)"
    ):
        read_foreign(path)
    with pytest.raises(TrajectoryError, match=r"unpack|longer|blank|not JSON|missing"):
        read_trajectories(path)


def test_an_endless_line_ends_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 2**20)
    path = tmp_path / "long.jsonl"
    path.write_text(GOOD + "x" * 2**20 + "y\n")
    with pytest.raises(TrajectoryError) as caught:
        read_trajectories(path, skip_invalid=True)
    assert str(caught.value) == f"{path}:2: longer than 1 MiB; expected one record per line"
    path.write_text(GOOD.strip().ljust(2**20 - 1) + "\n")
    assert len(read_trajectories(path).trajectories) == 1


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("[" * 10**5 + "]" * 10**5, "not JSON (recursion limit exceeded"),
        ('{"a":' * 10**5, "not JSON (recursion limit exceeded"),
        (r'"\ud800"', "not JSON (unexpected end of hex escape"),
        (r'"\udc00x"', "not JSON (lone leading surrogate in hex escape"),
        (r'{"\ud800": 1}', "not JSON (unexpected end of hex escape"),
        ('"\0"', "not JSON (control character (\\u0000-\\u001F) found"),
        ('{"a": 1, "a": 2}', "field 'a' appears twice; expected each field once"),
        ("1" * 5000, "not JSON (number out of range"),
        ("-" + "9" * 10**6, "not JSON (number out of range"),
        ("1e999", "contains 1e999; expected finite numbers"),
        ("-1e999", "contains -1e999; expected finite numbers"),
        ("NaN", "contains NaN"),
        ("Infinity", "contains Infinity"),
    ],
)
@pytest.mark.parametrize("listed", [False, True])
def test_a_line_with_a_value_outside_json_is_rejected(
    tmp_path: Path, value: str, reason: str, listed: bool
) -> None:
    for text, read in ((GOOD, read_trajectories), (MESSAGES, read_foreign)):
        bad = text.strip().removesuffix("}") + f', "metadata": {{"x": {value}}}}}\n'
        path = tmp_path / "expert.jsonl"
        if listed and read is read_foreign:
            path.write_text(f"[{text.strip()},\n{bad}]")
            with pytest.raises(TrajectoryError) as caught:
                read(path)
            assert str(caught.value).startswith(f"{path}: ")
        else:
            path.write_text(text + bad)
            with pytest.raises(TrajectoryError) as caught:
                read(path)
            assert str(caught.value).startswith(f"{path}:2: {reason}")
        assert str(caught.value).isprintable()


def test_a_surrogate_pair_is_one_character(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(GOOD.replace('"c"', r'"\ud83d\udd25"'))
    assert read_trajectories(tmp_path / "a.jsonl").trajectories[0].instruction == "\U0001f525"


def test_a_line_of_a_million_characters_is_read_quickly(tmp_path: Path) -> None:
    # A reader with quadratic time would take minutes here.
    turns = [{"role": "user", "content": "x"}] * 20_000 + [
        {"role": "assistant", "content": "Thought: a\n" + "Action: b\n" * 100_000},
        {"role": "user", "content": "\n \n" * 300_000 + "ok" * 10**5},
        {"role": "assistant", "content": "<think>" * 100_000 + "</think>x"},
    ]
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": "a_" * 10**5, "messages": turns}))
    (trajectory,) = read_foreign(tmp_path / "a.jsonl").trajectories
    assert trajectory.steps[1].action == "x"


def test_text_is_read_from_regular_files_only(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_bytes("\ufeffBe brief.".encode())
    (tmp_path / "odd").write_bytes(b"\xff\xfea\x00")
    assert read_text(tmp_path / "text") == "Be brief."
    with pytest.raises(Unreadable, match="a pipe; expected a text file"):
        read_text(tmp_path / "pipe")
    with pytest.raises(Unreadable, match="not UTF-8 text; expected a text file"):
        read_text(tmp_path / "odd")
