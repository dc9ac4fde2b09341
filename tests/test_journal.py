"""The journal: saved line by line, intact after a kill, one writer, no foreign file touched."""

from pathlib import Path

import pytest

from fakes import demonstrations
from stepagent.commands.episode_journal import (
    Journal,
    JournalError,
    is_kept,
    journal_path,
    read_journal,
)
from stepagent.trajectories import TrajectoryError, write_jsonl

FIRST, SECOND = demonstrations()[:2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return journal_path(tmp_path / "out.jsonl.gz")


def test_an_added_episode_is_on_the_disk_at_once_and_read_again(path: Path) -> None:
    assert path.name == "out.jsonl.gz.episodes"
    with Journal(path) as journal:
        assert journal.episodes == {}
        journal.add(FIRST)
        assert read_journal(path) == (FIRST,)
    with Journal(path) as journal:
        assert journal.episodes == {FIRST.id: FIRST}
        journal.add(SECOND)
    assert read_journal(path) == (FIRST, SECOND)


@pytest.mark.parametrize("kept", [1, 3, 7, 50, -1])
def test_a_truncated_last_line_is_dropped(path: Path, kept: int) -> None:
    with Journal(path) as journal:
        journal.add(FIRST)
    whole = path.read_bytes()
    with Journal(path) as journal:
        journal.add(SECOND)
    path.write_bytes(whole + path.read_bytes()[len(whole) :][:kept])
    with Journal(path) as journal:
        assert journal.episodes == {FIRST.id: FIRST}
        journal.add(SECOND)
    assert read_journal(path) == (FIRST, SECOND)


def test_a_journal_without_an_episode_leaves_no_file(path: Path) -> None:
    with Journal(path):
        assert path.exists()
    assert not path.exists()
    path.write_bytes(FIRST.model_dump_json().encode()[:30])
    with Journal(path) as journal:
        assert journal.episodes == {}
    assert not path.exists()


def test_a_second_writer_is_refused(path: Path) -> None:
    with Journal(path) as journal:
        for _ in range(2):  # the failed attempt has not removed the file
            with pytest.raises(JournalError, match=r"\.episodes: another process is writing it$"):
                Journal(path)
        journal.add(FIRST)
    assert read_journal(path) == (FIRST,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("my notes", "is not a journal of episodes; choose another --out"),
        ("my notes\n", "not JSON"),
        ('{"id": "a"}\n', "missing"),
    ],
)
def test_a_foreign_file_is_refused_and_unchanged(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises((JournalError, TrajectoryError), match=message):
        Journal(path)
    assert path.read_text() == text


def test_an_episode_under_other_settings_is_refused(path: Path) -> None:
    with Journal(path) as journal:
        journal.add(FIRST.model_copy(update={"metadata": {"model": "a\x1b", "temperature": 0}}))
        journal.check(FIRST.id, {"model": "a\x1b", "temperature": 0.0})
        with pytest.raises(JournalError) as raised:
            journal.check(FIRST.id, {"model": "b", "temperature": 0.0})
    assert f"{FIRST.id} was played with model 'a\\x1b', now it is 'b'; use the" in str(raised.value)


def test_an_episode_that_was_changed_is_refused(path: Path) -> None:
    with Journal(path) as journal:
        journal.add(FIRST)
        journal.add(SECOND)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"boxes", b"foxes", 1))
    with pytest.raises(JournalError, match=f"the episode {FIRST.id} was changed after"):
        Journal(path)
    path.write_bytes(whole.splitlines(keepends=True)[1])
    with Journal(path) as journal:
        assert journal.episodes == {SECOND.id: SECOND}


def test_zeros_that_a_power_cut_left_are_dropped(path: Path) -> None:
    with Journal(path) as journal:
        journal.add(FIRST)
    path.write_bytes(path.read_bytes() + SECOND.model_dump_json().encode()[:40] + b"\0" * 4096)
    with Journal(path) as journal:
        assert journal.episodes == {FIRST.id: FIRST}


def test_an_edited_output_does_not_count_as_its_journals(path: Path) -> None:
    out = path.with_name("out.jsonl.gz")
    with Journal(path) as journal:
        journal.add(FIRST)
        journal.add(SECOND)
    write_jsonl(out, [FIRST])
    assert is_kept(out)
    write_jsonl(out, [FIRST.model_copy(update={"score": 1.0})])
    assert not is_kept(out)
