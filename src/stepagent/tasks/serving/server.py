"""Serves a task over OpenEnv's protocol, so that any trainer for OpenEnv environments can use it.

    with serving(ScienceWorld(["boil"])) as url:
        ...                                        # GenericEnvClient(base_url=url), TRL, verifiers

The protocol is that of OpenEnv 0.10 (github.com/huggingface/OpenEnv, `core/env_server/`): an
episode is played in a WebSocket session of `/ws`; HTTP offers schemas, health and the Task API,
which lists items. An action is `{"text": ...}`; an observation has `text`, the first one also
`instruction`. Score and success are in the answer's metadata, which players do not show to the
agent.

Beyond loopback a token is required, unless open access is requested explicitly; see `guard`. The
connection is not encrypted, so the token is sent in clear text.
"""

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from stepagent.console.printable import printable
from stepagent.tasks.adapters.remote import LOOPBACK, ServerError
from stepagent.tasks.base import Task
from stepagent.tasks.data.optional_packages import needs

if TYPE_CHECKING:
    import uvicorn

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 2**20

MAX_CONNECTIONS = 100
"""Connections beside those of the sessions; more are answered with status 503."""

IDLE_SECONDS = 600.0
"""A session without a message for so long is closed; trainers may take minutes between steps."""

PING_SECONDS = 20.0
"""Time limit for a player's answer to a WebSocket ping."""

SHUTDOWN_SECONDS = 5


class Access(NamedTuple):
    """Who may play."""

    token: str | None = None
    """Token that players must send."""
    is_open: bool = False
    """Whether anybody who reaches the address may play without a token; a warning says so."""


@contextlib.contextmanager
def serving(
    task: Task,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    max_sessions: int = 8,
    idle_seconds: float = IDLE_SECONDS,
    access: Access = Access(),  # noqa: B008  # immutable
) -> Iterator[str]:
    """Serves the task in a thread for the duration of the block; yields the URL.

    Port 0 chooses a free port. Every session has its own environment; at most `max_sessions` run at
    a time, and one without a message for `idle_seconds` is closed. The task is not closed at the
    end. Raises `ServerError` if the port is taken, or if others can reach the address and `access`
    neither has a token nor is open; `PackageMissing` without the extra.
    """
    server = _server(task, host, max_sessions, idle_seconds, access)
    with _listening(host, port) as listener:
        thread = threading.Thread(
            target=partial(server.run, sockets=[listener]), name="openenv-server", daemon=True
        )
        thread.start()
        try:
            yield _url(listener)
        finally:
            server.should_exit = True
            thread.join()


def serve(
    task: Task,
    *,
    announce: Callable[[str], None],
    host: str = "127.0.0.1",
    port: int = 8000,
    max_sessions: int = 8,
    idle_seconds: float = IDLE_SECONDS,
    access: Access = Access(),  # noqa: B008  # immutable
) -> None:
    """Serves the task like `serving`, but until an interrupt; `announce` is called with the URL."""
    server = _server(task, host, max_sessions, idle_seconds, access)
    with _listening(host, port) as listener:
        announce(_url(listener))
        server.run(sockets=[listener])


def _server(
    task: Task, host: str, max_sessions: int, idle_seconds: float, access: Access
) -> "uvicorn.Server":
    with needs("openenv"):
        import uvicorn
        import websockets  # noqa: F401  # without it uvicorn silently serves no WebSockets

        from stepagent.tasks.serving.app import TaskServer
        from stepagent.tasks.serving.guard import Guard
        from stepagent.tasks.serving.protocol import TimedProtocol
    is_local = _is_local(host)
    if not is_local and access.token is None:
        if not access.is_open:
            raise ServerError(
                f"{host}: others can reach this address; give a token (--token-file, or the "
                "environment variable STEPAGENT_TOKEN), or --without-token to let anybody play"
            )
        logger.warning(
            "%s: anybody who reaches this address can play without a token", printable(host)
        )
    hosts = {*LOOPBACK, host.lower()} if is_local and access.token is None else None
    app = TaskServer(task, max_sessions, idle_seconds).app(MAX_REQUEST_BYTES)
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    config = uvicorn.Config(
        Guard(app, token=access.token, hosts=hosts),
        http=TimedProtocol,
        log_config=None,
        access_log=False,
        ws_max_size=MAX_REQUEST_BYTES,
        ws_ping_interval=PING_SECONDS,
        ws_ping_timeout=PING_SECONDS,
        limit_concurrency=max_sessions + MAX_CONNECTIONS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    return uvicorn.Server(config)


def _is_local(host: str) -> bool:
    """Whether only this machine can reach the host; an unknown name fails when it is used."""
    try:
        known = socket.getaddrinfo(host or "0.0.0.0", None, type=socket.SOCK_STREAM)
    except OSError:
        return True
    return all(ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in known)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ServerError(f"{host}:{port}: cannot listen there: {reason}") from None


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_news(record: logging.LogRecord) -> bool:
    """Hides uvicorn's false error about a WebSocket that was refused with a reason."""
    return "without completing handshake" not in record.getMessage()
