"""Questions on disk: one SQLite file, so that an episode reads its question and no other.

HotpotQA's training questions have 600 MB of paragraphs; every command would read them all.
"""

import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stepagent.tasks.base import Split, TaskDataError
from stepagent.tasks.qa.questions import Paragraph, Question
from stepagent.trajectories import problem_of

_TABLES = """
create table question (id text primary key, split text, kind text, body blob);
create table file (name text, split text, questions integer);
"""


class QuestionWriter:
    """Fills a new file."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def add(self, question: Question, split: Split) -> bool:
        """Keeps a question, unless one with its id is there already."""
        body = zlib.compress(question.model_dump_json().encode())
        row = (question.id, split, question.kind, body)
        done = self._connection.execute("insert or ignore into question values (?,?,?,?)", row)
        return done.rowcount == 1

    def add_file(self, name: str, split: str, questions: int) -> None:
        """Notes which file gave how many questions."""
        self._connection.execute("insert into file values (?,?,?)", (name, split, questions))


@contextmanager
def new_store(path: Path) -> Iterator[QuestionWriter]:
    """A writer whose questions are kept when the block ends without an error."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(_TABLES)
        yield QuestionWriter(connection)


class QuestionStore:
    """Reads a file that `new_store` made; any number of threads may use it."""

    def __init__(self, path: Path) -> None:
        """Raises `TaskDataError` only when something is read."""
        self._path = path

    def kinds(self, split: Split) -> dict[str, str]:
        """The kind of every question of the split by id, in the order of the files."""
        rows = self._read("select id, kind from question where split = ? order by rowid", split)
        return dict(rows)

    def question(self, item: str) -> Question:
        """One question; KeyError if there is none with this id."""
        for (body,) in self._read("select body from question where id = ?", item):
            return self._question(body)
        raise KeyError(item)

    def paragraphs(self, split: Split) -> list[Paragraph]:
        """All paragraphs of the split's questions, each once."""
        rows = self._read("select body from question where split = ? order by rowid", split)
        paragraphs = (p for (body,) in rows for p in self._question(body).paragraphs)
        return list({(p.title, p.text): p for p in paragraphs}.values())

    def files(self) -> dict[str, dict[str, int]]:
        """How many questions of which split came from which file."""
        found: dict[str, dict[str, int]] = {}
        for name, split, count in self._read("select name, split, questions from file"):
            of_file = found.setdefault(name, {})
            of_file[split] = of_file.get(split, 0) + count
        return found

    def _read(self, query: str, *values: str) -> Iterator[tuple[Any, ...]]:
        # A connection of its own for each query: they open in no time, and no thread shares one.
        uri = f"{self._path.absolute().as_uri()}?mode=ro"
        with self._undamaged(), closing(sqlite3.connect(uri, uri=True)) as connection:
            yield from connection.execute(query, values)

    def _question(self, body: bytes) -> Question:
        with self._undamaged():
            return Question.model_validate_json(zlib.decompress(body))

    @contextmanager
    def _undamaged(self) -> Iterator[None]:
        """Makes one line of whatever reading a damaged file raises."""
        try:
            yield
            return
        except ValidationError as error:
            reason = problem_of(error, Question)
        except (sqlite3.DatabaseError, zlib.error) as error:
            reason = str(error)
        raise TaskDataError(f"{self._path}: damaged, get the data again: {reason}")
