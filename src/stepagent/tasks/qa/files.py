"""Records of JSON, JSON lines and parquet files, in folders and zips, one after the other.

The largest official file has 570 MB; nothing here holds more than a piece of it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepagent.tasks.base import TaskDataError
from stepagent.tasks.data.archives import open_member, open_zip
from stepagent.tasks.data.files import stream_json_list
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
"""Of a parquet file that are read at a time."""


@dataclass(frozen=True, order=True)
class RecordFile:
    """A file on disk, or a member of a zip, which is read where it is and never unpacked."""

    path: Path
    member: str = ""

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    @property
    def stem(self) -> str:
        """The last part of its name."""
        return (self.member or self.path.name).rsplit("/", 1)[-1]

    def first(self) -> dict[str, Any]:
        """The first record; empty for files that hold something else."""
        _, record = next(self.records(), ("", None))
        return record if isinstance(record, dict) else {}

    def records(self) -> Iterator[tuple[str, Any]]:
        """All values, each with its place for messages; None for a line that is not JSON.

        Raises `TaskDataError` if the file is damaged.
        """
        with needs("qa"):
            import ijson  # noqa: F401  # needed further on
        if self.path.suffix == ".parquet":
            for number, row in enumerate(_parquet_rows(self.path), start=1):
                yield f"{self.name}: row {number}", row
            return
        with self._content() as found:
            starts_list = found.read(64).lstrip()[:1] == b"["
        with self._content() as found:
            if starts_list:
                yield from stream_json_list(found)
                return
            for number, line in enumerate(found.lines(), start=1):
                if line.strip():
                    yield f"{self.name}:{number}", _parsed(line)

    @contextmanager
    def _content(self) -> Iterator[Content]:
        if self.path.suffix != ".zip":
            with open_content(self.path) as found:
                yield found
            return
        with open_zip(self.path) as archive, open_member(archive, self.path, self.member) as found:
            yield found


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
                files.append(RecordFile(path))  # the error comes when it is read, if ever
                continue
            files += [
                RecordFile(path, name)
                for name in members
                # macOS puts a shadow of every file into its zips.
                if name.endswith((".json", ".jsonl")) and "__MACOSX" not in name
            ]
    return files


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):  # also bytes that are no UTF-8, and endless nesting
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
                        f"{path}: rows have more than {MAX_RECORD_BYTES:,} bytes; expected less"
                    )
                yield from batch.to_pylist()
        except (ArrowException, OSError) as error:
            raise damaged(str(path), error) from None
