"""Streams the records of JSON, JSON lines and parquet files in folders and zips.

The largest official file has 570 MB; only a piece of it is in memory at a time.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepagent.tasks.base import TaskDataError
from stepagent.tasks.data.archives import open_member, open_zip
from stepagent.tasks.data.json_files import stream_json_list
from stepagent.tasks.data.limited_reader import (
    MAX_RECORD_BYTES,
    Content,
    damaged,
    open_content,
    open_regular,
)
from stepagent.tasks.data.optional_packages import needs

_ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
_ROWS = 64
"""Rows of a parquet file that are read at a time."""


@dataclass(frozen=True, order=True)
class RecordFile:
    """A file on disk, or a member of a zip, which is read in place."""

    path: Path
    member: str = ""

    @property
    def name(self) -> str:
        """The full name, for messages."""
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    @property
    def stem(self) -> str:
        """The file's own name without its folders."""
        return (self.member or self.path.name).rsplit("/", 1)[-1]

    def first(self) -> dict[str, Any]:
        """The first record; empty if that is not an object."""
        _, record = next(self.records(), ("", None))
        return record if isinstance(record, dict) else {}

    def records(self) -> Iterator[tuple[str, Any]]:
        """Yields all values, each with its place for messages; a line that is not JSON is None.

        Raises `TaskDataError` if the file is damaged.
        """
        with needs("qa"):
            import ijson  # noqa: F401  # used later: a missing package is reported at once
        if self.path.suffix == ".parquet":
            for number, row in enumerate(_parquet_rows(self.path), start=1):
                yield f"{self.name}: row {number}", row
            return
        with self._content() as content:
            starts_list = content.read(64).lstrip()[:1] == b"["
        with self._content() as content:
            if starts_list:
                yield from stream_json_list(content)
                return
            for number, line in enumerate(content.lines(), start=1):
                if line.strip():
                    yield f"{self.name}:{number}", _parsed(line)

    @contextmanager
    def _content(self) -> Iterator[Content]:
        if self.path.suffix != ".zip":
            with open_content(self.path) as content:
                yield content
            return
        with (
            open_zip(self.path) as archive,
            open_member(archive, self.path, self.member) as content,
        ):
            yield content


def record_files(source: Path) -> list[RecordFile]:
    """All files at or below `source` that may hold records, in a fixed order."""
    if not source.exists():
        raise TaskDataError(f"{source}: no such file or folder")
    paths = sorted(source.rglob("*")) if source.is_dir() else [source]
    files = []
    for path in paths:
        if path.is_dir():
            continue
        if path.name.endswith((*_ENDINGS, ".parquet")):
            files.append(RecordFile(path))
        elif path.suffix == ".zip":
            try:
                with open_zip(path) as archive:
                    members = sorted(set(archive.namelist()))
            except TaskDataError:
                files.append(RecordFile(path))  # raises the error only if it is read
                continue
            files += [
                RecordFile(path, name)
                for name in members
                # macOS adds a metadata file for every file in a zip.
                if name.endswith((".json", ".jsonl")) and "__MACOSX" not in name
            ]
    return files


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):  # includes bytes that are not UTF-8, and deep nesting
        return None


def _parquet_rows(path: Path) -> Iterator[Any]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise TaskDataError(
            f"{path}: parquet files need the package pyarrow; install it: pip install pyarrow"
        ) from None
    with open_regular(path) as file:
        try:
            for batch in ParquetFile(file).iter_batches(batch_size=_ROWS):
                if batch.nbytes > _ROWS * MAX_RECORD_BYTES:
                    raise TaskDataError(
                        f"{path}: rows have more than {MAX_RECORD_BYTES:,} bytes; expected fewer"
                    )
                yield from batch.to_pylist()
        except (ArrowException, OSError) as error:
            raise damaged(str(path), error) from None
