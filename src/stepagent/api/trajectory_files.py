"""Trajectories from and to files, in every format that `stepagent import` and `export` know."""

import logging
from collections.abc import Iterable
from pathlib import Path

from stepagent.console.printable import printable
from stepagent.formats.import_export import READERS, WRITERS, read_foreign, write_foreign
from stepagent.trajectories import write_jsonl
from stepagent.types import Trajectory

logger = logging.getLogger(__name__)


def read_trajectories(
    path: str | Path,
    *,
    format: str | None = None,
    task: str | None = None,
    skip_invalid: bool = False,
) -> list[Trajectory]:
    """Reads trajectories in any format that `stepagent import` reads.

    Formats: JSON lines, a JSON list, one JSON object, gzip or Parquet, of messages (TRL, Hugging
    Face, OpenAI), ETO, AgentGym, ATIF, WebShop, KnowAgent or StepAgent's own records.

    Args:
        path: The file.
        format: The format, such as "messages"; by default the fields of the first record tell.
        task: The task of records that name none; by default the file's name.
        skip_invalid: Leave records out that cannot be used, with one warning for each reason.

    Returns:
        At least one trajectory, in the order of the file, each with an id of its own.

    Raises:
        ValueError: The format is unknown.
        TrajectoryError: A record cannot be used; one line with file, place and what was expected.
        OSError: The file cannot be read.

    Example:
        >>> import json, pathlib, tempfile
        >>> from stepagent import read_trajectories
        >>> file = pathlib.Path(tempfile.mkdtemp(), "boil.jsonl")
        >>> turns = [("user", "Boil water. You see a pot."), ("assistant", "fill pot")]
        >>> messages = [{"role": role, "content": content} for role, content in turns]
        >>> _ = file.write_text(json.dumps({"messages": messages}))
        >>> [trajectory] = read_trajectories(file)
        >>> trajectory.steps[0].action
        'fill pot'
    """
    _check_format(format, READERS)
    found = read_foreign(Path(path), format=format, task=task, skip_invalid=skip_invalid)
    for reason, numbers in found.rejected.items():
        logger.warning(
            "%s: %d records left out, the first at %s %d: %s",
            printable(str(path), limit=4096), len(numbers), found.places, numbers[0], reason,
        )  # fmt: skip
    return list(found.trajectories)


def write_trajectories(
    path: str | Path,
    trajectories: Iterable[Trajectory],
    *,
    format: str = "trajectories",
    overwrite: bool = False,
) -> None:
    """Writes one trajectory per line of JSON; the file appears whole or not at all.

    Args:
        path: The file; a name that ends in `.gz` is compressed.
        trajectories: What to write.
        format: "trajectories", which loses nothing, or another format that `stepagent export`
            writes, such as "messages".
        overwrite: Replace the file if it exists.

    Raises:
        ValueError: The format is unknown.
        FileExistsError: The file exists and `overwrite` is off.
        TrajectoryError: A trajectory cannot be written in the format.

    Example:
        >>> import pathlib, stepagent, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp(), "own.jsonl.gz")
        >>> stepagent.write_trajectories(file, demonstrations, format="messages")
        >>> stepagent.read_trajectories(file) == demonstrations
        True
    """
    _check_format(format, ("trajectories", *WRITERS))
    if format == "trajectories":
        write_jsonl(path, trajectories, replace=overwrite)
    else:
        write_foreign(Path(path), trajectories, format, replace=overwrite)


def _check_format(format: str | None, known: Iterable[str]) -> None:
    if format is not None and format not in known:
        raise ValueError(f"unknown format {format!r}; expected one of {', '.join(known)}")
