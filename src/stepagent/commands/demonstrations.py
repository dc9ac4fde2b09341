"""Reading of demonstrations by commands: an unusable one is an error, or left out and listed."""

from collections.abc import Sequence
from pathlib import Path

from stepagent.console.printable import printable
from stepagent.model.policy import Policy
from stepagent.rendering.renderer import RenderedTrajectory
from stepagent.trajectories import read_trajectories
from stepagent.types import Trajectory


def read_demonstrations(file: Path, *, skip_invalid: bool) -> tuple[Trajectory, ...]:
    """Reads the trajectories of a file; prints those that `skip_invalid` leaves out."""
    read = read_trajectories(file, skip_invalid=skip_invalid)
    name = printable(str(file), limit=4096)
    for rejected in read.rejected:
        print(f"left out: {name}:{rejected.line_number}: {rejected.reason}")
    if read.rejected:
        print(f"left out: {len(read.rejected)} lines in all")
    return read.trajectories


def render_demonstrations(
    policy: Policy, trajectories: Sequence[Trajectory], *, skip_invalid: bool
) -> list[RenderedTrajectory]:
    """Tokenizes trajectories; prints those that `skip_invalid` leaves out: too long, or lossy."""
    if not skip_invalid:
        return [policy.render(t) for t in trajectories]
    rendered, left_out = policy.render_fitting(trajectories)
    for reason in left_out:
        print(f"left out: {printable(reason, limit=4096)}")
    if left_out:
        print(f"left out: {len(left_out)} of {len(trajectories)} trajectories")
    return rendered
