"""The journal of episodes that cost money: each is on the disk as soon as it is finished.

It is an ordinary file of trajectories, beside the file that is written at the end. A command that
was killed and is called again finds there what need not be paid for twice. A kill can cut off the
last line; that episode is then played again.
"""

from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from stepagent.atomic import disk_errors
from stepagent.locks import Taken, lock
from stepagent.trajectories import printable, read_jsonl
from stepagent.types import Trajectory

LINE_START = b'{"id":'
"""What every line begins with: only such a line is taken out, never one of a foreign file."""


class JournalError(ValueError):
    """The journal cannot be used as asked; the message is one line."""


def journal_path(out: Path) -> Path:
    """Where the journal of an output file is."""
    return out.with_name(f"{out.name}.episodes")


def drop_journal(out: Path) -> None:
    """Removes the journal of a finished output file, unless it has more episodes than that."""
    path, kept = journal_path(out), {t.id for t in read_jsonl(out, Trajectory)}
    if path.exists() and all(t.id in kept for t in read_jsonl(path, Trajectory)):
        path.unlink()


class Journal:
    """An open journal, locked against a second process; `with` closes it."""

    def __init__(self, path: Path) -> None:
        """Opens the file, which may be missing; a last line that was cut off is taken out."""
        self.path = path
        name = printable(str(path), limit=4096)
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
            self.episodes = {t.id: t for t in read_jsonl(path, Trajectory)}
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
        if self._file.seek(0, 2) == 0:
            self.path.unlink(missing_ok=True)
        self._file.close()
        self._lock.release()

    def add(self, episode: Trajectory) -> None:
        """Writes a finished episode behind the others."""
        with disk_errors(self.path):
            self._file.write(episode.model_dump_json().encode() + b"\n")
            self._file.flush()
        self.episodes[episode.id] = episode

    def check(self, item: str, settings: Mapping[str, JsonValue]) -> None:
        """Raises `JournalError` if the item was played under other settings than these."""
        metadata = self.episodes[item].metadata
        for name, value in settings.items():
            if metadata.get(name) != value:
                raise JournalError(
                    f"{self.path}: {item} was played with {name} {metadata.get(name)!r}, now it is "
                    f"{value!r}; go on as it was begun, name another --out, or delete that file"
                )

    def _drop_cut_off_line(self) -> None:
        self._file.seek(0)
        whole = self._file.read()
        end = whole.rfind(b"\n") + 1
        if not whole[end:].startswith(LINE_START[: len(whole) - end]):
            raise JournalError(f"{self.path}: not a journal of episodes; name another --out")
        self._file.truncate(end)
