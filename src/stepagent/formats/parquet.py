"""Reads Parquet files, as used by data sets on the hub, row by row with pyarrow.

A column of objects stores the fields of all objects in each row, null where an object lacks one, so
nulls are left out. Times and decimals become text; bytes are an error that names the row.
"""

import json
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from stepagent.console.printable import printable, shown
from stepagent.files.lines import PARQUET, Unreadable, open_regular
from stepagent.trajectories import error_at

_ROWS_AT_ONCE = 256


def is_parquet(path: Path) -> bool:
    """Whether the file begins like a Parquet file; raises `TrajectoryError` if it is unreadable."""
    try:
        with open_regular(path) as file:
            return file.read(len(PARQUET)) == PARQUET
    except Unreadable as error:
        raise error_at(path, str(error)) from None


def read_rows(path: Path) -> Iterator[tuple[int, bytes | str]]:
    """Yields the number of each row with the row as a line of JSON, or why it cannot be one."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise error_at(
            path,
            "a Parquet file, which needs pyarrow; install it (pip install pyarrow) or give a file "
            "of JSON lines",
        ) from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    number += 1
                    yield number, _json_line(row)
    except (pyarrow.ArrowException, OSError) as error:
        raise error_at(path, f"a damaged Parquet file ({printable(str(error))})") from None


def _json_line(row: dict[str, Any]) -> bytes | str:
    def as_text(value: object) -> str:
        """Times and decimals, which JSON lacks, as text; other values are an error."""
        if isinstance(value, datetime | date | time | timedelta | Decimal):
            return str(value)
        raise TypeError(f"contains {type(value).__name__} {shown(str(value))}")

    try:
        text = json.dumps(_without_nulls(row), ensure_ascii=False, default=as_text)
        return text.encode() + b"\n"
    except TypeError as error:
        return f"{error}; expected values that JSON can hold"
    except (UnicodeEncodeError, ValueError):
        return "contains text that is not UTF-8; expected UTF-8"


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(v) for key, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(entry) for entry in value]
    return value
