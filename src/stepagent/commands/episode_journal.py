"""The journal of episodes that cost time or money: each is on the disk as soon as it is finished.

It is an ordinary file of trajectories, beside the file that is written at the end. A command that
was killed and is called again finds there what need not be played twice, if that was played as it
would be now. A kill can cut off the last line; that episode is then played again.
"""

import hashlib
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from stepagent.console.printable import printable
from stepagent.console.progress import track
from stepagent.files.atomic import disk_errors
from stepagent.files.locks import Taken, lock
from stepagent.tasks.tries import Missing
from stepagent.trajectories import TrajectoryError, read_jsonl
from stepagent.types import Trajectory

logger = logging.getLogger(__name__)

LINE_START = b'{"id":'
"""What every line begins with: only such a line is taken out, never one of a foreign file."""


PLAYED = "played"
"""Where the metadata of an episode in the journal, and only there, says how it was played."""


LINE_HASH = "journal_sha256"
"""Where the metadata of an episode in the journal, and only there, has the hash of the rest."""


class JournalError(ValueError):
    """The journal cannot be used as asked; the message is one line."""


def journal_path(out: Path) -> Path:
    """Where the journal of an output file is."""
    return out.with_name(f"{out.name}.episodes")


def drop_journal(out: Path) -> None:
    """Removes the journal of a finished output file, unless it has more episodes than that."""
    path, kept = journal_path(out), {t.id for t in read_jsonl(out, Trajectory)}
    if path.exists() and all(t.id in kept for t in read_journal(path)):
        path.unlink()


def is_kept(out: Path) -> bool:
    """Whether an output file has only episodes of its journal: the same command may go on."""
    path = journal_path(out)
    if not (out.is_file() and path.is_file()):
        return False
    try:
        journal = {t.id: _as_played(t) for t in read_journal(path)}
        return all(journal.get(t.id) == t for t in read_jsonl(out, Trajectory))
    except (TrajectoryError, JournalError):
        return False


def read_journal(path: Path) -> tuple[Trajectory, ...]:
    """The episodes of a journal; raises `JournalError` for one that is not as it was written."""
    episodes = []
    for written in read_jsonl(path, Trajectory):
        episode = _without(written, LINE_HASH)
        if written.metadata.get(LINE_HASH) != _hash(episode):
            raise JournalError(
                f"{printable(str(path), limit=4096)}: the episode {printable(written.id)} is not "
                "as it was written; take its line out, and it is played again"
            )
        episodes.append(episode)
    return tuple(episodes)


class Journal:
    """An open journal, locked against a second process; `with` closes it."""

    def __init__(self, path: Path) -> None:
        """Opens the file, which may be missing; a last line that was cut off is taken out."""
        self.path = path
        self._name = name = printable(str(path), limit=4096)
        if path.exists() and not path.is_file():
            raise JournalError(f"{name}: not an ordinary file; name another --out")
        try:
            self._lock = lock(path)
        except Taken:
            raise JournalError(f"{name}: another process is writing it") from None
        # After the lock, for whoever held it before may have removed the file.
        self._file = open(path, "a+b")  # noqa: SIM115 -- held as long as the journal
        try:
            self._drop_cut_off_line()
            self.episodes = {t.id: t for t in read_journal(path)}
            """What is finished, by item."""
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
        """Lets other processes use the file; one without an episode is removed."""
        # On a full disk what could not be written is tried again here; that was said already.
        with suppress(OSError):
            if self._file.seek(0, 2) == 0:
                self.path.unlink(missing_ok=True)
        with suppress(OSError):
            self._file.close()
        self._lock.release()

    def add(self, episode: Trajectory) -> None:
        """Writes a finished episode behind the others."""
        written = _with_metadata(episode, {**episode.metadata, LINE_HASH: _hash(episode)})
        with disk_errors(self.path):
            self._file.write(written.model_dump_json().encode() + b"\n")
            self._file.flush()
        self.episodes[episode.id] = episode

    def check(self, item: str, settings: Mapping[str, JsonValue]) -> None:
        """Raises `JournalError` if the item was played under other settings than these."""
        metadata = self.episodes[item].metadata
        for name, value in settings.items():
            if change := _first_change(metadata.get(name), value, name):
                raise JournalError(
                    f"{self._name}: {printable(item)} was played with {change}; go on as "
                    "it was begun, name another --out, or delete that file"
                )

    def _drop_cut_off_line(self) -> None:
        self._file.seek(0)
        whole = self._file.read()
        end = whole.rfind(b"\n") + 1
        tail = whole[end:].rstrip(b"\0")  # what a power cut can leave
        if not tail.startswith(LINE_START[: len(tail)]):
            raise JournalError(f"{self._name}: not a journal of episodes; name another --out")
        self._file.truncate(end)


def kept(
    out: Path,
    items: Sequence[str],
    settings: Callable[[str], Mapping[str, JsonValue]],
    play: Callable[[Sequence[str]], Generator[Trajectory | Missing, None, None]],
    description: str,
) -> list[Trajectory | Missing]:
    """What came of every item, in order; each episode is in the journal of OUT once it is finished.

    Those that are there already are not played again. Raises `JournalError` if one of them was
    played under other settings than the item would be now.
    """
    with Journal(journal_path(out)) as journal:
        for item in items:
            if item in journal.episodes:
                journal.check(item, settings(item))
        left = [item for item in items if item not in journal.episodes]
        if len(left) < len(items):
            logger.info(
                "%s: has %d of %d episodes", journal.path, len(items) - len(left), len(items)
            )
        others: dict[str, Missing] = {}
        with closing(play(left)) as outcomes:
            for outcome in track(outcomes, description, total=len(left)):
                if isinstance(outcome, Trajectory):
                    how = settings(outcome.id)
                    journal.add(_with_metadata(outcome, {**outcome.metadata, **how}))
                else:
                    others[outcome.item] = outcome
        return [
            others[item] if item in others else _as_played(journal.episodes[item]) for item in items
        ]


def _as_played(episode: Trajectory) -> Trajectory:
    """The episode without what only the journal says of it."""
    return _without(episode, PLAYED)


def _without(episode: Trajectory, *names: str) -> Trajectory:
    return _with_metadata(episode, {k: v for k, v in episode.metadata.items() if k not in names})


def _with_metadata(episode: Trajectory, metadata: Mapping[str, JsonValue]) -> Trajectory:
    return episode.model_copy(update={"metadata": dict(metadata)})


def _hash(episode: Trajectory) -> str:
    return hashlib.sha256(episode.model_dump_json().encode()).hexdigest()


def _first_change(before: Any, now: Any, name: str) -> str | None:
    """Which setting differs, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        inner = (_first_change(before.get(k), now.get(k), k) for k in {**before, **now})
        return next((change for change in inner if change), None)
    return None if before == now else f"{name} {before!r}, now it is {now!r}"
