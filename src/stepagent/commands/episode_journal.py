"""The journal of a command's episodes: each is saved as soon as it is finished.

It is an ordinary file of trajectories next to the output file. A command that was killed and is
run again takes finished episodes from it, provided that its settings are the same. A last line
that was cut off by the kill is dropped, and its episode is played again.
"""

import glob
import hashlib
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from stepagent.console.printable import printable
from stepagent.console.progress import track
from stepagent.files.atomic import disk_errors
from stepagent.files.locks import Taken, lock
from stepagent.processes import ranks
from stepagent.tasks.tries import Missing
from stepagent.trajectories import TrajectoryError, read_jsonl
from stepagent.types import Trajectory

logger = logging.getLogger(__name__)

LINE_START = b'{"id":'
"""How every line begins: a cut-off line is dropped only if it does, so no foreign file is cut."""

PLAYED = "played"
"""Metadata field, in the journal only, with the settings that an episode was played with."""

LINE_HASH = "journal_sha256"
"""Metadata field, in the journal only, with the hash of the rest of the line."""


class JournalError(ValueError):
    """The journal cannot be used as asked; the message is one line."""


def journal_path(out: Path) -> Path:
    """Path of an output file's journal."""
    return out.with_name(f"{out.name}.episodes")


def drop_journal(out: Path) -> None:
    """Removes the journal of a finished output file, unless it has episodes that the file lacks."""
    path, kept = journal_path(out), {t.id for t in read_jsonl(out, Trajectory)}
    if path.exists() and all(t.id in kept for t in read_journal(path)):
        path.unlink()


def is_kept(out: Path) -> bool:
    """Whether all episodes of an output file are in its journal, so that it may be replaced."""
    path = journal_path(out)
    if not (out.is_file() and path.is_file()):
        return False
    try:
        journal = {t.id: _as_played(t) for t in read_journal(path)}
        return all(journal.get(t.id) == t for t in read_jsonl(out, Trajectory))
    except (TrajectoryError, JournalError):
        return False


def read_journal(path: Path) -> tuple[Trajectory, ...]:
    """The episodes of a journal; raises `JournalError` if one was changed after it was written."""
    episodes = []
    for written in read_jsonl(path, Trajectory):
        episode = _without(written, LINE_HASH)
        if written.metadata.get(LINE_HASH) != _hash(episode):
            raise JournalError(
                f"{printable(str(path), limit=4096)}: the episode {printable(written.id)} was "
                "changed after it was written; delete its line to play it again"
            )
        episodes.append(episode)
    return tuple(episodes)


class Journal:
    """An open journal, locked against other processes; a context manager that closes it."""

    def __init__(self, path: Path) -> None:
        """Opens or creates the file; drops a last line that was cut off."""
        self.path = path
        self._name = name = printable(str(path), limit=4096)
        if path.exists() and not path.is_file():
            raise JournalError(f"{name}: is not a regular file; choose another --out")
        try:
            self._lock = lock(path)
        except Taken:
            raise JournalError(f"{name}: another process is writing it") from None
        # Opened after locking: the previous holder of the lock may have removed the file.
        self._file = open(path, "a+b")  # noqa: SIM115 -- held as long as the journal
        try:
            self._drop_cut_off_line()
            self.episodes = {t.id: t for t in read_journal(path)}
            """Finished episodes by item."""
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Journal":
        """The journal itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Closes and unlocks the file; removes it if it has no episode."""
        # On a full disk the failed write is retried here; its error was reported already.
        with suppress(OSError):
            if self._file.seek(0, 2) == 0:
                self.path.unlink(missing_ok=True)
        with suppress(OSError):
            self._file.close()
        self._lock.release()

    def add(self, episode: Trajectory) -> None:
        """Appends a finished episode."""
        written = _with_metadata(episode, {**episode.metadata, LINE_HASH: _hash(episode)})
        with disk_errors(self.path):
            self._file.write(written.model_dump_json().encode() + b"\n")
            self._file.flush()
        self.episodes[episode.id] = episode

    def check(self, item: str, settings: Mapping[str, JsonValue]) -> None:
        """Raises `JournalError` if the item was played with other settings than these."""
        metadata = self.episodes[item].metadata
        for name, value in settings.items():
            if change := _first_change(metadata.get(name), value, name):
                raise JournalError(
                    f"{self._name}: {printable(item)} was played with {change}; use the same "
                    "settings, choose another --out, or delete that file"
                )

    def _drop_cut_off_line(self) -> None:
        self._file.seek(0)
        whole = self._file.read()
        end = whole.rfind(b"\n") + 1
        tail = whole[end:].rstrip(b"\0")  # a power cut can leave zeros
        if not tail.startswith(LINE_START[: len(tail)]):
            raise JournalError(f"{self._name}: is not a journal of episodes; choose another --out")
        self._file.truncate(end)


def kept(
    out: Path,
    items: Sequence[str],
    settings: Callable[[str], Mapping[str, JsonValue]],
    play: Callable[[Sequence[str]], Generator[Trajectory | Missing, None, None]],
    description: str,
) -> list[Trajectory | Missing]:
    """The episode or loss of every item, in order; saves each to OUT's journal when it ends.

    Episodes that the journal already has are not played again. Raises `JournalError` if one of them
    was played with other settings than those of the item now.

    Each of several processes plays its share and has a journal of its own, until the first one
    takes over what is in it: here, or when a stopped command is run again.
    """
    with ExitStack() as stack:
        path = journal_path(out)
        if ranks.is_first():
            journal = stack.enter_context(Journal(path))
            for other in sorted(path.parent.glob(f"{glob.escape(path.name)}.[0-9]*")):
                _take_over(journal, other)
            for item in items:
                if item in journal.episodes:
                    journal.check(item, settings(item))
        found: dict[str, Trajectory | Missing] = {}
        found |= ranks.from_first(journal.episodes if ranks.is_first() else {})
        if not ranks.is_first():
            journal = stack.enter_context(Journal(path.with_name(f"{path.name}.{ranks.rank()}")))
        left = [item for item in items if item not in found]
        if len(left) < len(items):
            logger.info("%s: has %d of %d episodes", path, len(items) - len(left), len(items))
        own, mine = ranks.every_other(left), dict[str, Trajectory | Missing]()
        with closing(play(own)) as outcomes:
            for outcome in track(outcomes, description, total=len(own)):
                if isinstance(outcome, Trajectory):
                    how = settings(outcome.id)
                    journal.add(_with_metadata(outcome, {**outcome.metadata, **how}))
                    mine[outcome.id] = journal.episodes[outcome.id]
                else:
                    mine[outcome.item] = outcome
        found |= ranks.gathered(mine)
        if ranks.is_first():
            for item in left:
                played = found[item]
                if isinstance(played, Trajectory) and item not in journal.episodes:
                    journal.add(played)
        ranks.wait()
        if not ranks.is_first():
            journal.path.unlink()
    return [
        _as_played(played) if isinstance(played := found[item], Trajectory) else played
        for item in items
    ]


def _take_over(journal: Journal, path: Path) -> None:
    """Adds the episodes of another process's journal, and removes it."""
    with Journal(path) as other:
        for item, episode in other.episodes.items():
            if item not in journal.episodes:
                journal.add(episode)
        path.unlink()


def _as_played(episode: Trajectory) -> Trajectory:
    """The episode without the journal's own metadata."""
    return _without(episode, PLAYED)


def _without(episode: Trajectory, *names: str) -> Trajectory:
    return _with_metadata(episode, {k: v for k, v in episode.metadata.items() if k not in names})


def _with_metadata(episode: Trajectory, metadata: Mapping[str, JsonValue]) -> Trajectory:
    return episode.model_copy(update={"metadata": dict(metadata)})


def _hash(episode: Trajectory) -> str:
    return hashlib.sha256(episode.model_dump_json().encode()).hexdigest()


def _first_change(before: Any, now: Any, name: str) -> str | None:
    """The first setting that differs, in words; None if all are equal."""
    if isinstance(before, dict) and isinstance(now, dict):
        inner = (_first_change(before.get(k), now.get(k), k) for k in {**before, **now})
        return next((change for change in inner if change), None)
    return None if before == now else f"{name} {before!r}, now it is {now!r}"
