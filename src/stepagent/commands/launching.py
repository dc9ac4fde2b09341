"""`--launcher ray`: a command in several processes that Ray starts."""

from argparse import ArgumentError, ArgumentParser, Namespace
from collections.abc import Callable, Sequence

from stepagent.commands.parsing import UsageError, check_at_least_one
from stepagent.processes.ray_workers import run_with_ray

OPTIONS = ("--launcher", "--num-workers", "--ray-address", "--max-restarts")

HELP = """In several processes that Ray starts, on this machine or on a cluster:

  stepagent train RECIPE --out RUN --launcher ray --num-workers 8

  --launcher ray         Ray starts the processes: pip install 'stepagent[ray]'
  --num-workers N        how many; each takes one GPU if there are any, else one CPU
  --ray-address ADDRESS  a cluster that is running; without it Ray starts on this machine
  --max-restarts N       how often all are started again, with --resume, after one is lost: 3

torchrun can start them too (docs/processes.md)."""
"""For the help of a command."""


def is_launched(args: Sequence[str]) -> bool:
    """Whether a command line has an option of a launcher."""
    return any(word.partition("=")[0] in OPTIONS for word in args)


def launch(args: Sequence[str], resume: str, work: Callable[[Sequence[str]], None]) -> None:
    """Runs a command line in processes that Ray starts: each calls `work` without these options.

    `resume` is the option that resumes the command, if any. Raises `UsageError` for options that
    cannot be used, and what `run_with_ray` raises.
    """
    options, rest = parsed(args)
    if {"-h", "--help"} & {*rest}:
        work(rest)
        return
    if options.launcher != "ray":
        given = next(word.partition("=")[0] for word in args if is_launched([word]))
        if options.launcher is not None:
            raise UsageError(f"--launcher {options.launcher}: expected ray")
        raise UsageError(f"{given}: only for --launcher ray")
    if options.num_workers is None:
        raise UsageError("--launcher ray: expected --num-workers N too")
    check_at_least_one("--num-workers", options.num_workers)
    if options.max_restarts < 0:
        raise UsageError(f"--max-restarts must be at least 0, not {options.max_restarts}")
    again = [*rest, resume] if resume and resume not in rest else rest
    run_with_ray(
        work,
        rest,
        again,
        num_workers=options.num_workers,
        address=options.ray_address,
        restarts=options.max_restarts,
    )


def parsed(args: Sequence[str]) -> tuple[Namespace, list[str]]:
    """The launcher's options, and what is left; raises `UsageError` for one that is no number."""
    parser = ArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)
    parser.add_argument("--launcher")
    parser.add_argument("--num-workers", type=int)
    parser.add_argument("--ray-address")
    parser.add_argument("--max-restarts", type=int, default=3)
    try:
        return parser.parse_known_args(args)
    except ArgumentError as error:
        raise UsageError(f"{error.argument_name}: {error.message}") from None
