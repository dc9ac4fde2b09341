"""`--launcher ray`: a command in several processes that Ray starts."""

from argparse import ArgumentParser
from collections.abc import Sequence

from stepagent.commands.parsing import UsageError
from stepagent.processes.ray_workers import run_with_ray


def launch(args: Sequence[str], resume: str) -> None:
    """Runs the command line `args` in processes that Ray starts; `resume` is what resumes it.

    Raises `UsageError` for wrong options, and what `run_with_ray` raises.
    """
    parser = ArgumentParser(prog=f"stepagent {args[0]}", allow_abbrev=False, add_help=False)
    parser.add_argument("--launcher", choices=["ray"])
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--ray-address")
    parser.add_argument("--max-restarts", type=int, default=3)
    options, rest = parser.parse_known_args(args)
    if options.num_workers < 1:
        raise UsageError("--launcher ray: expected --num-workers N, at least 1")
    if resume and resume not in rest:
        raise UsageError(
            f"--launcher ray: expected {resume}, with which it goes on after a failure"
        )
    run_with_ray(
        _work,
        rest,
        num_workers=options.num_workers,
        address=options.ray_address,
        restarts=options.max_restarts,
    )


def _work(args: Sequence[str]) -> None:
    from stepagent.cli import main

    main(args)
