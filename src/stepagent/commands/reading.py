"""How commands read trajectories: invalid lines are an error, or left out and listed."""

from pathlib import Path

from stepagent.trajectories import read_trajectories
from stepagent.types import Trajectory


def read_demonstrations(file: Path, *, skip_invalid: bool) -> tuple[Trajectory, ...]:
    """The trajectories of a file; prints what `skip_invalid` leaves out."""
    read = read_trajectories(file, skip_invalid=skip_invalid)
    for rejected in read.rejected:
        print(f"left out: {file}:{rejected.line_number}: {rejected.reason}")
    if read.rejected:
        print(f"left out: {len(read.rejected)} lines in all")
    return read.trajectories
