"""Questions in an SQLite file, so that an episode reads only its own question.

HotpotQA's training questions have 600 MB of paragraphs, which every command would read otherwise.
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
    """Adds questions to a new file."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def add(self, question: Question, split: Split) -> bool:
        """Adds a question; returns False if there is already one with its id."""
        body = zlib.compress(question.model_dump_json().encode())
        row = (question.id, split, question.kind, body)
        done = self._connection.execute("insert or ignore into question values (?,?,?,?)", row)
        return done.rowcount == 1

    def add_file(self, name: str, split: str, questions: int) -> None:
        """Records how many questions of a split came from a file."""
        self._connection.execute("insert into file values (?,?,?)", (name, split, questions))


@contextmanager
def new_store(path: Path) -> Iterator[QuestionWriter]:
    """Creates a file; its questions are committed if the block ends without an error."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(_TABLES)
        yield QuestionWriter(connection)


class QuestionStore:
    """Reads a file written by `new_store`; any number of threads may use it."""

    def __init__(self, path: Path) -> None:
        """Opens nothing yet; reading raises `TaskDataError` if the file is damaged."""
        self._path = path

    def kinds(self, split: Split) -> dict[str, str]:
        """The kinds of the split's questions by id, in the order of the files."""
        rows = self._read("select id, kind from question where split = ? order by rowid", split)
        return dict(rows)

    def question(self, item: str) -> Question:
        """The question with an id; raises KeyError if there is none."""
        for (body,) in self._read("select body from question where id = ?", item):
            return self._question(body)
        raise KeyError(item)

    def paragraphs(self, split: Split) -> list[Paragraph]:
        """All paragraphs of the split's questions, without duplicates."""
        rows = self._read("select body from question where split = ? order by rowid", split)
        paragraphs = (p for (body,) in rows for p in self._question(body).paragraphs)
        return list({(p.title, p.text): p for p in paragraphs}.values())

    def files(self) -> dict[str, dict[str, int]]:
        """Number of questions by source file and split."""
        counts: dict[str, dict[str, int]] = {}
        for name, split, count in self._read("select name, split, questions from file"):
            of_file = counts.setdefault(name, {})
            of_file[split] = of_file.get(split, 0) + count
        return counts

    def _read(self, query: str, *values: str) -> Iterator[tuple[Any, ...]]:
        # A new connection per query: opening is fast, and threads must not share one.
        uri = f"{self._path.absolute().as_uri()}?mode=ro"
        with self._undamaged(), closing(sqlite3.connect(uri, uri=True)) as connection:
            yield from connection.execute(query, values)

    def _question(self, body: bytes) -> Question:
        with self._undamaged():
            return Question.model_validate_json(zlib.decompress(body))

    @contextmanager
    def _undamaged(self) -> Iterator[None]:
        """Turns the errors of a damaged file into one line."""
        try:
            yield
            return
        except ValidationError as error:
            reason = problem_of(error, Question)
        except (sqlite3.DatabaseError, zlib.error) as error:
            reason = str(error)
        raise TaskDataError(f"{self._path}: damaged, install the data again: {reason}")
