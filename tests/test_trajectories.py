"""Files of records are read back as they were written, and every error is one exact line."""

import gzip
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepagent.trajectories import (
    Rejected,
    TrajectoryError,
    read_jsonl,
    read_trajectories,
    write_jsonl,
)
from stepagent.types import Step, Trajectory

GOOD: dict[str, Any] = {
    "id": "boil/1",
    "task": "boil",
    "instruction": "Boil water.",
    "steps": [{"observation": "A sink.", "action": "open sink"}],
}


def line(**changes: Any) -> str:
    return json.dumps(GOOD | changes)


def file_of(folder: Path, content: str | bytes, name: str = "expert.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def error_of(path: Path) -> str:
    with pytest.raises(TrajectoryError) as caught:
        read_trajectories(path)
    return str(caught.value).removeprefix(f"{path.parent}{os.sep}")


texts = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["\u2028", "\x00", "\r", "\r\n", "\x85", "\ufeff", "\x1b[31m", '"', "\\", "\U0001f525"]
)
filled = st.builds("{}x{}".format, texts, texts)
finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
steps = st.builds(Step, observation=texts, action=filled, reward=st.none() | finite)
trajectories = st.builds(
    Trajectory,
    id=filled,
    task=filled,
    instruction=filled,
    steps=st.lists(steps, min_size=1, max_size=4).map(tuple),
    final_observation=texts,
    score=st.none() | st.floats(0, 100),
    success=st.none() | st.booleans(),
    truncated=st.booleans(),
    metadata=st.dictionaries(texts, json_values, max_size=3),
)
trajectory_lists = st.lists(trajectories, min_size=1, max_size=4, unique_by=lambda t: t.id)


@given(trajectory_lists, st.sampled_from(["expert.jsonl", "expert.jsonl.gz"]))
def test_what_was_written_is_read_back(written: list[Trajectory], name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        write_jsonl(path, written)
        assert read_trajectories(path).trajectories == tuple(written)
        assert read_jsonl(path, Trajectory) == tuple(written)


@given(trajectory_lists)
def test_each_record_takes_one_line(written: list[Trajectory]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "expert.jsonl")
        write_jsonl(path, written)
        assert path.read_bytes().count(b"\n") == len(written)
        assert b"\r" not in path.read_bytes()


def test_any_record_type_can_be_written_and_read(tmp_path: Path) -> None:
    steps = Trajectory.model_validate_json(line()).steps
    write_jsonl(tmp_path / "steps.jsonl", steps)
    assert read_jsonl(tmp_path / "steps.jsonl", Step) == steps


def test_no_records_make_an_empty_file_that_reads_as_no_records(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "none.jsonl", [])
    assert (tmp_path / "none.jsonl").read_bytes() == b""
    assert read_jsonl(tmp_path / "none.jsonl", Step) == ()


def test_read_jsonl_names_the_line_of_a_bad_record(tmp_path: Path) -> None:
    path = file_of(tmp_path, '{"observation": "", "action": "x"}\n{"action": "x"}\n')
    with pytest.raises(TrajectoryError) as caught:
        read_jsonl(path, Step)
    expected = f"{path}:2: observation: missing; expected at least observation, action"
    assert str(caught.value) == expected


ONE = "; expected one Trajectory object per line"
DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("nope\n", "not JSON (expected ident at column 2)" + ONE),
        ("{} {}\n", "not JSON (trailing characters at column 4)" + ONE),
        (
            line()[:-9] + "\n",
            f"not JSON (EOF while parsing a string at column {len(line()) - 9})" + ONE,
        ),
        (
            line()[:-9],
            "not JSON (the last line of the file is truncated)" + ONE,
        ),
        (
            DEEP + "\n",
            "not JSON (recursion limit exceeded at column 202)" + ONE,
        ),
        ("[1]\n", "expected a Trajectory object, got a list"),
        ("3\n", "expected a Trajectory object, got 3"),
        (line(score="12"), "score: expected a number, got '12'"),
        (line(score=True), "score: expected a number, got true"),
        (line(score=101), "score: expected a number of at most 100, got 101"),
        (line(score=-1), "score: expected a number of at least 0, got -1"),
        (line(score=float("nan")), "score: expected a finite number, got nan"),
        (line(score=10**400), "score: expected a finite number, got a huge number"),
        (line(metadata={"a": float("nan")}), "contains NaN; expected finite numbers"),
        (
            line(metadata={"a": 0}).replace("0}", "1e999}"),
            "contains 1e999; expected finite numbers",
        ),
        (line(steps=[]), "steps: expected at least one entry, got an empty list"),
        (line(steps={"a": 1}), "steps: expected a list, got an object"),
        (line(steps=[None]), "steps[0]: expected a Step object, got null"),
        (
            line(steps=[*GOOD["steps"], {"observation": "", "action": ""}]),
            "steps[1].action: expected non-empty text, got ''",
        ),
        (
            line(steps=[{"observation": 1, "action": " \n"}]),
            "steps[0].observation: expected text, got 1 (and 1 more)",
        ),
        (
            line(steps=[{"observation": "a pond"}]),
            "steps[0].action: missing; expected at least observation, action",
        ),
        (
            line(steps=[*GOOD["steps"], {"observation": "", "action": "x", "mood": "y"}]),
            "steps[1].mood: unknown field; expected only observation, action, thought, reward",
        ),
        (line(instruction=["x"]), "instruction: expected text, got a list"),
        (line(truncated=1), "truncated: expected true or false, got 1"),
        (line(metadata=[]), "metadata: expected an object, got an empty list"),
        (line()[:-1] + ', "task": "melt"}', "field 'task' appears twice; expected each field once"),
        (
            line(final_observation="\ud800"),
            f"not JSON (unexpected end of hex escape at column {len(line()) + 30})" + ONE,
        ),
        (b"\xff\xfe{}\n", "byte 1 of the line is not UTF-8; expected UTF-8 text"),
        (
            line().encode().replace(b"water", b"w\xe4ter"),
            "byte 56 of the line is not UTF-8; expected UTF-8 text",
        ),
        ("\ufeff" + line(), "not JSON (expected value at column 1)" + ONE),
        (line(id="ok"), "id: 'ok' is already on line 1; expected unique ids"),
        (line(success="y" * 99), f"success: expected true or false, got '{'y' * 60}...'"),
        (
            line(success="\x1b]0;owned\x07\n\u2028\u202e"),
            r"success: expected true or false, got '\x1b]0;owned\x07\n\u2028\u202e'",
        ),
    ],
)
def test_an_invalid_line_is_named_with_what_was_expected(
    tmp_path: Path, bad: str | bytes, message: str
) -> None:
    content = f"{line(id='ok')}\n\n".encode() + (bad if isinstance(bad, bytes) else bad.encode())
    path = file_of(tmp_path, content)
    assert error_of(path) == f"expert.jsonl:3: {message}"

    result = read_trajectories(path, skip_invalid=True)
    assert [trajectory.id for trajectory in result.trajectories] == ["ok"]
    assert result.rejected == (Rejected(line_number=3, reason=message),)


def test_an_unknown_field_cannot_smuggle_control_characters_into_the_message(
    tmp_path: Path,
) -> None:
    path = file_of(tmp_path, line(**{"\x1b[2J\nx" + "a" * 99: 1}))
    message = error_of(path)
    assert message.startswith(rf"expert.jsonl:1: \x1b[2J\nx{'a' * 54}...: unknown field; expected")
    assert message.isprintable()


def test_a_file_name_cannot_smuggle_control_characters_into_the_message(tmp_path: Path) -> None:
    assert r"\x1b[2J\n.jsonl: no such file" in error_of(tmp_path / "\x1b[2J\n.jsonl")


@given(st.binary(max_size=80) | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_give_trajectories_or_one_printable_line(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("expert.jsonl", "expert.jsonl.gz"):
            with pytest.raises(TrajectoryError) as caught:
                read_trajectories(file_of(Path(folder), content, name))
            assert str(caught.value).isprintable()


@pytest.mark.parametrize("content", ["", "\n", " \r\n\n", "\ufeff"])
def test_a_file_without_any_trajectory_is_an_error(tmp_path: Path, content: str) -> None:
    path = file_of(tmp_path, content)
    expected = "expert.jsonl:1: empty; expected one Trajectory object per line"
    assert error_of(path) == expected
    with pytest.raises(TrajectoryError, match="empty"):
        read_trajectories(path, skip_invalid=True)


def test_a_file_in_which_every_line_is_rejected_is_an_error(tmp_path: Path) -> None:
    path = file_of(tmp_path, "\n1\n2\n")
    with pytest.raises(TrajectoryError) as caught:
        read_trajectories(path, skip_invalid=True)
    reason = "none of its 2 lines is valid; expected a Trajectory object, got 1"
    assert str(caught.value) == f"{path}:2: {reason}"


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    missing = error_of(tmp_path / "missing.jsonl")
    assert missing == "missing.jsonl: no such file; expected a file of JSON lines"
    (tmp_path / "folder").mkdir()
    assert error_of(tmp_path / "folder") == "folder: a directory; expected a file of JSON lines"


def test_other_reasons_not_to_read_a_file_are_named(tmp_path: Path) -> None:
    file_of(tmp_path, line(), name="file")
    message = error_of(tmp_path / "file" / "expert.jsonl")
    expected = "cannot be read: Not a directory; expected a file of JSON lines"
    assert message == f"expert.jsonl: {expected}"


def test_blank_lines_windows_line_ends_a_byte_order_mark_and_no_last_newline_are_harmless(
    tmp_path: Path,
) -> None:
    path = file_of(tmp_path, f"\ufeff{line(id='a')}\r\n\r\n  \n{line(id='b')}")
    result = read_trajectories(path)
    assert [trajectory.id for trajectory in result.trajectories] == ["a", "b"]
    assert result.rejected == ()


def test_cut_off_gzip_data_is_an_error_after_the_lines_that_can_be_read(tmp_path: Path) -> None:
    # Random ids, since text that compresses well would be decompressed in one piece.
    lines = [line(id=os.urandom(3000).hex()) for _ in range(20)]
    whole = gzip.compress("\n".join(lines).encode())
    path = file_of(tmp_path, whole[: len(whole) // 2], name="expert.jsonl.gz")
    result = read_trajectories(path, skip_invalid=True)
    usable = len(result.trajectories)
    assert 0 < usable < 20
    reason = "damaged or cut-off gzip data; expected a complete .gz file"
    assert result.rejected == (Rejected(line_number=usable + 1, reason=reason),)
    assert error_of(path) == f"expert.jsonl.gz:{usable + 1}: {reason}"


def test_plain_text_under_a_gzip_name_is_an_error(tmp_path: Path) -> None:
    path = file_of(tmp_path, line(), name="expert.jsonl.gz")
    reason = "damaged or cut-off gzip data; expected a complete .gz file"
    assert error_of(path) == f"expert.jsonl.gz:1: {reason}"


def test_equal_records_make_equal_gzip_files(tmp_path: Path) -> None:
    record = Trajectory.model_validate_json(line())
    write_jsonl(tmp_path / "a.gz", [record])
    write_jsonl(tmp_path / "b.gz", [record])
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


@pytest.mark.parametrize("name", ["expert.jsonl", "expert.jsonl.gz"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, name: str, error: type[BaseException]
) -> None:
    path = file_of(tmp_path, "old", name)

    def records() -> Iterator[Trajectory]:
        yield Trajectory.model_validate_json(line())
        assert len(list(tmp_path.iterdir())) == 2, "the new file is beside the old one"
        raise error

    with pytest.raises(error):
        write_jsonl(path, records())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_cannot_replace_the_target_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(OSError):
        write_jsonl(target, [Trajectory.model_validate_json(line())])
    assert list(tmp_path.iterdir()) == [target]


def test_a_record_that_cannot_be_encoded_is_not_written(tmp_path: Path) -> None:
    unreadable = Step.model_construct(observation="\ud800", action="x")
    with pytest.raises(ValueError, match="surrogates"):
        write_jsonl(tmp_path / "steps.jsonl", [unreadable])
    assert list(tmp_path.iterdir()) == []


def test_a_written_file_has_the_usual_permissions_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = file_of(tmp_path, "old")
    usual = path.stat().st_mode
    write_jsonl(path, [Trajectory.model_validate_json(line())])
    assert path.stat().st_mode == usual
    assert len(read_trajectories(path).trajectories) == 1
