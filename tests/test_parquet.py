"""Parquet files are read like the same records in JSON lines."""

import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from stepagent.formats.import_export import read_foreign
from stepagent.trajectories import TrajectoryError, read_trajectories

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

CALL = {"type": "function", "function": {"name": "look", "arguments": '{"at": null}'}}
MESSAGES = [
    {"role": "system", "content": "You shop."},
    {"role": "user", "content": "A kettle."},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None},
    {"role": "tool", "content": "Here."},
    {"role": "assistant", "content": "Thought: Good.\nAction: stop"},
]


def file_of(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "expert.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


def test_rows_are_records(tmp_path: Path) -> None:
    row = {"id": 3, "messages": MESSAGES, "source": "hand", "score": None}
    found = read_foreign(file_of(tmp_path, *({**row, "id": i} for i in range(600))))
    assert (found.format, found.places, len(found.trajectories)) == ("messages", "record", 600)
    trajectory = found.trajectories[-1]
    assert (trajectory.id, trajectory.instruction) == ("599", "You shop.")
    assert [(s.observation, s.thought, s.action) for s in trajectory.steps] == [
        ("A kettle.", "", '{"name":"look","arguments":{"at":null}}'),
        ("Here.", "Good.", "stop"),
    ]
    assert trajectory.metadata["source"] == "hand"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"x", "contains bytes 'b'x''; expected values that JSON can hold"),
        (float("nan"), "contains NaN; expected finite numbers"),
    ],
)
def test_a_row_with_a_value_outside_json_is_rejected(
    tmp_path: Path, value: object, reason: str
) -> None:
    first: dict[str, Any] = {"messages": MESSAGES, "time": None}
    path = file_of(tmp_path, first, first | {"time": value})
    with pytest.raises(TrajectoryError) as caught:
        read_foreign(path)
    assert str(caught.value).startswith(f"{path}: record 2: {reason}")
    assert read_foreign(path, skip_invalid=True).rejected.popitem()[1] == [2]


def test_times_and_decimals_beside_the_messages_are_text(tmp_path: Path) -> None:
    extra = {"at": datetime(2020, 1, 1, tzinfo=UTC), "cost": Decimal("0.10")}
    (read,) = read_foreign(file_of(tmp_path, {"messages": MESSAGES} | extra)).trajectories
    assert read.metadata["at"] == "2020-01-01 00:00:00+00:00"
    assert read.metadata["cost"] == "0.10"


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    path = file_of(tmp_path, {"messages": MESSAGES})
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(TrajectoryError, match=r"expert\.parquet: a damaged Parquet file \("):
        read_foreign(path)


def test_without_pyarrow_the_error_names_the_file_and_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file_of(tmp_path, {"messages": MESSAGES})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(TrajectoryError, match=r"a Parquet file.*pip install pyarrow"):
        read_foreign(path)


def test_trajectories_are_not_read_from_parquet(tmp_path: Path) -> None:
    path = file_of(tmp_path, {"messages": MESSAGES})
    with pytest.raises(TrajectoryError, match=r"a Parquet file; .*`stepagent import` reads"):
        read_trajectories(path)
