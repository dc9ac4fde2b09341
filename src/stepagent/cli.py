"""The command line: `stepagent COMMAND ...`; each command is a module of `stepagent.commands`.

What a user can put right (a wrong name, a missing file, a full disk) is one line on standard error
and exit code 2. Any other error is a bug and keeps its traceback.
"""

import importlib
import io
import logging
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from typing import NoReturn

from stepagent.processes.signals import (
    stopping,  # nothing slow: only behind it a signal is one line
)

COMMANDS = {
    "train": ("train", "a whole run from a recipe, from novice to expert"),
    "report": ("report", "one HTML page from run folders"),
    "tasks": ("tasks", "which tasks there are, and whether their data is"),
    "download": ("download", "the data of a task"),
    "collect": ("collect", "expert trajectories from a task"),
    "import": ("import_", "trajectories from files in other formats"),
    "export": ("export", "files in other formats from trajectories"),
    "check": ("check", "what a model would read and learn of trajectories"),
    "sft": ("sft", "a novice from demonstrations"),
    "inspect": ("inspect", "what a policy does in every state of the demonstrations"),
    "reflect": ("reflect", "rounds of inspection and reflection on files, without an environment"),
    "evaluate": ("evaluate", "episodes of a policy in a task"),
    "serve": ("serve", "a task as an OpenEnv server, for other trainers"),
    "convert": ("convert", "a Hugging Face model folder from a GGUF file"),
    "export-model": ("export_model", "a policy or a discriminator as a folder for others"),
}
"""Each command's module in `stepagent.commands`, and what it makes."""

NO_MEMORY = "can't allocate memory"
"""What torch says on a CPU."""

GO_ON = {"train": "--resume", "reflect": "--resume", "collect": "", "evaluate": "", "download": ""}
"""Commands that go on where they were stopped, and what the same command needs for that."""

HELP = f"""usage: stepagent COMMAND ...

Trains a language-model agent from novice to expert, one step at a time.

{chr(10).join(f"  {name:<14}{what}" for name, (_, what) in COMMANDS.items())}

First run:  stepagent train scienceworld-demo --out runs/demo
Options:    stepagent COMMAND --help

Exit codes: 0 done; 2 something to put right, named in one line; 130 stopped by Ctrl-C. SIGTERM and
SIGHUP end with 75, and name the command that goes on, in
{", ".join(GO_ON)}; with 143 and 129 elsewhere."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs one command; ends the process with the exit codes of `HELP` unless it is done."""
    is_process = args is None
    args = sys.argv[1:] if args is None else list(args)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started the process
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 -- until the end
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # terminals need not know every letter
    is_told = False

    def last_words(number: int) -> int:
        nonlocal is_told
        if not is_told:
            is_told = True
            _say(f"stopped{_reason(number)}{_how_to_go_on(args)}")
        if number == signal.SIGINT:
            return 130
        return os.EX_TEMPFAIL if args and args[0] in GO_ON else 128 + number

    try:
        _run(args, stopping(last_words, at_end=is_process))
    except KeyboardInterrupt as stopped:
        raise SystemExit(last_words(getattr(stopped, "number", signal.SIGINT))) from None


def _run(args: Sequence[str], guard: AbstractContextManager[None]) -> None:
    """Runs the command within the guard; an error of the user's becomes one line."""
    try:
        with guard:
            _call(args)
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; nothing may be written at exit either.
        _close_output()
        raise SystemExit(141) from None
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _fail(f"{place}{error.strerror or error}")
    except MemoryError:
        _fail("out of memory")
    except RecursionError:
        _fail("a value is nested too deeply; expected at most some hundred levels")
    except (ValueError, RuntimeError) as error:
        # The project's own errors are written for users.
        is_own = type(error).__module__.startswith("stepagent.")
        if not is_own and "out of memory" not in str(error) and NO_MEMORY not in str(error):
            raise
        _fail(str(error) if is_own else f"out of memory: {str(error).splitlines()[0]}")


def _call(args: Sequence[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print(HELP)
        return
    command = args[0]
    if command not in COMMANDS:
        from stepagent.commands.parsing import unknown

        _fail(unknown("command", command, COMMANDS))
    _quiet()
    # Loaded only when needed: most commands bring torch in, which takes seconds.
    importlib.import_module(f"stepagent.commands.{COMMANDS[command][0]}").main(args[1:])


def _reason(number: int) -> str:
    return "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"


def _how_to_go_on(args: Sequence[str]) -> str:
    if not args or args[0] not in GO_ON:
        return ""
    option = GO_ON[args[0]]
    again = [*args, option] if option and option not in args else args
    return f"; to go on: stepagent {shlex.join(again)}"


def _fail(message: str) -> NoReturn:
    _say(message)
    try:
        sys.stdout.flush()
    except OSError:
        _close_output()
    raise SystemExit(2)


def _say(message: str) -> None:
    """One line on standard error that cannot steer the terminal."""
    from stepagent.console.printable import printable

    with suppress(OSError, ValueError):  # it may be closed, or on a full disk as well
        line = printable(" ".join(message.split()), limit=len(message))
        print(f"stepagent: {line}", file=sys.stderr, flush=True)


def _close_output() -> None:
    """Lets go of what cannot be written any more, or it would be tried again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _quiet() -> None:
    """Set before any Hugging Face library is imported, since they read it only once."""
    os.environ |= {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic matrix products on CUDA
    }
    logger = logging.getLogger("stepagent")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
