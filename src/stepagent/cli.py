"""The command line: `stepagent COMMAND ...`; each command is a module of `stepagent.commands`.

An error that the user can fix (a wrong name, a missing file, a full disk) is reported as one line
on standard error with exit code 2. Any other error is a bug and keeps its traceback.
"""

import importlib
import io
import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
    redirect_stdout,
    suppress,
)
from typing import NoReturn

# These import nothing slow: until the handlers are set, a signal prints a traceback.
from stepagent.processes import launched
from stepagent.processes.signals import stopping

COMMANDS = {
    "train": ("train", "train an agent from start to finish, by a recipe"),
    "plan": ("plan", "say how many hours and how much memory a run will take"),
    "report": ("report", "write an HTML report of one or several runs"),
    "tasks": ("tasks", "list the tasks and whether their data is installed"),
    "download": ("download", "download the data of a task"),
    "collect": ("collect", "record demonstrations (expert trajectories) in a task"),
    "import": ("import_", "convert files in other formats to trajectories"),
    "export": ("export", "convert trajectories to other formats"),
    "check": ("check", "show what a model would read and learn from a file"),
    "sft": ("sft", "fine-tune a first policy, the novice, on demonstrations"),
    "inspect": ("inspect", "let a policy act in every state of the demonstrations"),
    "reflect": ("reflect", "improve a policy from demonstrations, without an environment"),
    "evaluate": ("evaluate", "measure a policy's score and success in a task"),
    "serve": ("serve", "serve a task over the OpenEnv protocol, for other trainers"),
    "convert": ("convert", "convert a GGUF file to a Hugging Face model folder"),
    "export-model": ("export_model", "export a policy or discriminator of a run for other tools"),
}
"""Each command: its module in `stepagent.commands`, and what it does."""

NO_MEMORY = "can't allocate memory"
"""Torch's message when a CPU allocation fails."""

SHARED = ("train", "collect", "sft", "inspect", "reflect", "evaluate")
"""Commands that several processes share, if torchrun or Ray starts them."""

RESUMABLE = {
    "train": "--resume",
    "reflect": "--resume",
    "collect": "",
    "evaluate": "",
    "download": "",
}
"""Commands that can be resumed after a stop, and the option that this takes, if any."""

HELP = f"""usage: stepagent COMMAND ...

Trains language-model agents from novice to expert by learning from each step of an expert.

{chr(10).join(f"  {name:<14}{what}" for name, (_, what) in COMMANDS.items())}

First run:  stepagent train scienceworld-demo --out runs/demo
Options:    stepagent COMMAND --help

Terms: the novice is the policy after supervised fine-tuning on demonstrations. In each round,
inspection lets the policy act in every state of the demonstrations, and reflection learns from how
its actions differ from the expert's: implicit reflection by step-wise DPO, inverse reflection by a
learned step reward and PPO.

Exit codes: 0 success; 2 an error that one line on standard error explains; 130 stopped by Ctrl-C.
After SIGTERM or SIGHUP: 75 if the same command can be resumed, as it then says
({", ".join(RESUMABLE)}), else 143 or 129. 75 also if one of several processes was lost."""


class Failed(SystemExit):
    """A command ended with an exit code, for a reason that `line` tells the user."""

    def __init__(self, line: str, code: int = 2) -> None:
        """`line` is one line."""
        super().__init__(code)
        self.line = line


def main(args: Sequence[str] | None = None) -> None:
    """Runs one command; unless it succeeds, exits with one of the codes listed in `HELP`."""
    is_process = args is None
    args = sys.argv[1:] if args is None else list(args)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started the process
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 -- until the end
    if isinstance(sys.stdout, io.TextIOWrapper):
        # The terminal's encoding may lack a character.
        sys.stdout.reconfigure(errors="backslashreplace")
    is_told, telling = False, threading.Lock()

    def tell(line: str) -> None:
        nonlocal is_told
        # Two threads may come here. The second waits, or the process would end amid the line; but
        # not for ever: standard error may be a full pipe.
        if telling.acquire(timeout=1):
            if not is_told:
                _say(line)
            is_told = True
            telling.release()

    def last_words(number: int) -> int:
        # All are stopped together as a rule; one of them says how to resume.
        resume = "" if launched.number() else _how_to_resume(args)
        tell(f"{_who()}stopped{_reason(number)}{resume}")
        if number == signal.SIGINT:
            return 130
        return os.EX_TEMPFAIL if args and args[0] in RESUMABLE else 128 + number

    def lost(reason: str) -> int:
        tell(f"{_who()}{reason}{_how_to_resume(args)}")
        return _code_of_loss(args)

    try:
        _run(args, stopping(last_words, at_end=is_process), lost)
    except KeyboardInterrupt as stopped:
        raise SystemExit(last_words(getattr(stopped, "number", signal.SIGINT))) from None
    except Failed as failed:
        tell(failed.line)
        try:
            sys.stdout.flush()
        except OSError:
            _close_output()
        raise SystemExit(failed.code) from None


def work(args: Sequence[str]) -> None:
    """Runs one command in one of the processes that Ray started; raises `Failed` as it ends."""

    def lost(reason: str) -> int:
        _say(f"{_who()}{reason}")
        return os.EX_TEMPFAIL

    _run(args, nullcontext(), lost)


def _run(
    args: Sequence[str], guard: AbstractContextManager[None], lost: Callable[[str], int]
) -> None:
    """Runs the command within the guard; an error that the user can fix becomes `Failed`."""
    try:
        with guard:
            _call(args, lost)
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, has closed the pipe; nothing may be written at exit either.
        _close_output()
        raise SystemExit(141) from None
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _fail(f"{place}{error.strerror or error}")
    except MemoryError:
        _fail("out of memory")
    except RecursionError:
        _fail("a value is nested too deeply; expected at most a few hundred levels")
    except launched.Lost as error:
        raise Failed(f"{_who()}{error}{_how_to_resume(args)}", _code_of_loss(args)) from None
    except (ValueError, RuntimeError) as error:
        # Messages of the project's own errors are written for users.
        is_own = type(error).__module__.startswith("stepagent.")
        if not is_own and "out of memory" not in str(error) and NO_MEMORY not in str(error):
            raise
        _fail(str(error) if is_own else f"out of memory: {str(error).splitlines()[0]}")


def _call(args: Sequence[str], lost: Callable[[str], int]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print(HELP)
        return
    command = args[0]
    if command not in COMMANDS:
        from stepagent.commands.parsing import unknown

        _fail(unknown("command", command, COMMANDS))
    _quiet()
    from stepagent.commands.launching import is_launched, launch

    if is_launched(args):
        _check_shared(command, "--launcher ray")
        launch(args, RESUMABLE.get(command, ""), work)
        return
    with _together(command, lost):
        # Imported only when needed: most commands import torch, which takes seconds.
        importlib.import_module(f"stepagent.commands.{COMMANDS[command][0]}").main(args[1:])


def _check_shared(command: str, launcher: str) -> None:
    if command not in SHARED:
        _fail(f"{command}: works in one process; {launcher} can start {', '.join(SHARED)}")


@contextmanager
def _together(command: str, lost: Callable[[str], int]) -> Iterator[None]:
    """Within the block the processes that were started together do so; the first one talks."""
    if launched.size() == 1:
        yield
        return
    _check_shared(command, "torchrun")
    from stepagent.processes import ranks

    with ranks.joined(lost), ExitStack() as quiet:
        if not ranks.is_first():
            quiet.enter_context(redirect_stdout(quiet.enter_context(open(os.devnull, "w"))))
            logging.getLogger("stepagent").setLevel(logging.ERROR)
        yield


def _who() -> str:
    """Names this process, if there are others."""
    return f"process {launched.number()}: " if launched.size() > 1 else ""


def _code_of_loss(args: Sequence[str]) -> int:
    return os.EX_TEMPFAIL if args and args[0] in RESUMABLE else 2


def _reason(number: int) -> str:
    return "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"


def _how_to_resume(args: Sequence[str]) -> str:
    if not args or args[0] not in RESUMABLE:
        return ""
    option = RESUMABLE[args[0]]
    again = [*args, option] if option and option not in args else args
    launcher = "torchrun (as before) -m " if launched.size() > 1 else ""
    return f"; to resume: {launcher}stepagent {shlex.join(again)}"


def _fail(message: str) -> NoReturn:
    raise Failed(message)


def _say(message: str) -> None:
    """Prints one line on standard error, with escape sequences made harmless."""
    from stepagent.console.printable import printable

    with suppress(OSError, ValueError):  # standard error may be closed, or on a full disk
        line = printable(" ".join(message.split()), limit=len(message))
        sys.stderr.write(f"stepagent: {line}\n")  # one write: nothing can come between
        sys.stderr.flush()


def _close_output() -> None:
    """Discards buffered output that can no longer be written; Python would retry it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _quiet() -> None:
    """Silences libraries; called before Hugging Face ones are imported: they read this once."""
    os.environ |= {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }
    logger = logging.getLogger("stepagent")
    logger.setLevel(logging.INFO)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]  # a second command of the same process may have another stderr
