"""`stepagent serve`: serves a task over the OpenEnv protocol, for other trainers."""

import os
from collections.abc import Sequence
from pathlib import Path

from stepagent.commands.models import TaskChoice, open_task
from stepagent.commands.parsing import UsageError, check_at_least_one, run_command
from stepagent.tasks.data.limited_reader import open_regular
from stepagent.tasks.serving.server import IDLE_SECONDS, Access, serve

TOKEN = "STEPAGENT_TOKEN"
MAX_TOKEN_BYTES = 4096


def serve_task(
    *,
    task: TaskChoice,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_sessions: int = 8,
    idle_seconds: float = IDLE_SECONDS,
    token_file: Path | None = None,
    without_token: bool = False,
) -> None:
    """Serves a task over the OpenEnv protocol until Ctrl-C, so that other trainers can use it.

    Reads the task's data; writes nothing. If HOST is reachable from other machines, a token is
    required, from a file or the environment variable STEPAGENT_TOKEN; clients send it as a bearer
    token.

    For example: stepagent serve scienceworld --task-types find-plant

    Args:
        task: The task and its protocol.
        host: Address to listen on.
        port: Port to listen on; 0 chooses a free one.
        max_sessions: Most episodes at the same time.
        idle_seconds: Seconds after which an idle session is closed.
        token_file: File with the token that clients must send.
        without_token: Accept every client that reaches HOST, without a token.
    """
    check_at_least_one("--max-sessions", max_sessions)
    if not idle_seconds > 0:
        raise UsageError(f"--idle-seconds must be above 0, not {idle_seconds:g}")
    access = Access(_token(token_file), is_open=without_token)
    world = open_task(task)

    def announce(url: str) -> None:
        print(f"{world.name} at {url}, until Ctrl-C", flush=True)

    try:
        serve(
            world, announce=announce, host=host, port=port, max_sessions=max_sessions,
            idle_seconds=idle_seconds, access=access,
        )  # fmt: skip
    finally:
        world.close()


def _token(file: Path | None) -> str | None:
    """The token, if one is given; raises `UsageError` if an HTTP header cannot carry it."""
    if file is not None:
        with open_regular(file) as opened:
            found: str | None = opened.read(MAX_TOKEN_BYTES + 1).decode("latin-1").strip()
        place = str(file)
    else:
        found, place = os.environ.get(TOKEN), TOKEN
    if found is None:
        return None
    if not 0 < len(found) <= MAX_TOKEN_BYTES or not all("!" <= char <= "~" for char in found):
        raise UsageError(f"{place}: expected a token of printable ASCII characters, no spaces")
    return found


def main(args: Sequence[str]) -> None:
    """The command."""
    run_command(serve_task, "serve", args)
