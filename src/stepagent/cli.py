"""The command line: `stepagent COMMAND ...`; each command is a module of `stepagent.commands`.

What a user can put right (a wrong name, a missing file, a foreign folder) is one line on standard
error and exit code 2. Any other error is a bug and keeps its traceback.
"""

import importlib
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

from stepagent.commands.parsing import unknown

COMMANDS = {
    "train": ("train", "a whole run from a recipe, from novice to expert"),
    "report": ("report", "one HTML page from run folders"),
    "tasks": ("tasks", "which tasks there are, and whether their data is"),
    "download": ("download", "the data of a task"),
    "collect": ("collect", "expert trajectories from a task"),
    "import": ("importing", "trajectories from files in other formats"),
    "export": ("exporting", "files in other formats from trajectories"),
    "check": ("check", "what a model would read and learn of trajectories"),
    "sft": ("sft", "a novice from demonstrations"),
    "inspect": ("inspection", "what a policy does in every state of the demonstrations"),
    "reflect": ("reflect", "rounds of inspection and reflection on files, without an environment"),
    "evaluate": ("evaluate", "episodes of a policy in a task"),
    "serve": ("serve", "a task as an OpenEnv server, for other trainers"),
    "convert": ("convert", "a Hugging Face model folder from a GGUF file"),
    "export-model": ("export_model", "a policy or a discriminator as a folder for others"),
}
"""Each command's module in `stepagent.commands`, and what it makes."""

HELP = f"""usage: stepagent COMMAND ...

Trains a language-model agent from novice to expert, one step at a time.

{chr(10).join(f"  {name:<14}{what}" for name, (_, what) in COMMANDS.items())}

First run:  stepagent train scienceworld-demo --out runs/demo
Options:    stepagent COMMAND --help"""


def main(args: Sequence[str] | None = None) -> None:
    """Runs one command; ends the process with 2 for a user's error and 130 for Ctrl-C."""
    args = sys.argv[1:] if args is None else list(args)
    if not args or args[0] in ("-h", "--help"):
        print(HELP)
        return
    command = args[0]
    if command not in COMMANDS:
        _fail(unknown("command", command, COMMANDS))
    _quiet()
    try:
        # Loaded only when needed: most commands bring torch in, which takes seconds.
        importlib.import_module(f"stepagent.commands.{COMMANDS[command][0]}").main(args[1:])
    except KeyboardInterrupt:
        hint = ""
        if command in ("train", "reflect"):
            again = [*args, *(["--resume"] if "--resume" not in args else [])]
            hint = f"; to go on: stepagent {shlex.join(again)}"
        elif command in ("collect", "evaluate") and any("openai:" in arg for arg in args):
            hint = f"; to go on: stepagent {shlex.join(args)}"
        print(f"stepagent: stopped{hint}", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; nothing may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _fail(f"{place}{error.strerror or error}")
    except (ValueError, RuntimeError) as error:
        # The project's own errors are written for users.
        if not type(error).__module__.startswith("stepagent."):
            raise
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    print(f"stepagent: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


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
