"""A task served the OpenEnv way, so that whatever plays OpenEnv environments can train on it.

    with serving(ScienceWorld(["boil"])) as url:
        ...                                        # GenericEnvClient(base_url=url), TRL, verifiers

The wire is that of OpenEnv 0.10 (github.com/huggingface/OpenEnv, `core/env_server/`): an episode
lives in a WebSocket session of `/ws`; HTTP has schemas, health and the Task API, which lists items.
An action is `{"text": ...}`; an observation has `text`, and the first one also `instruction`. Score
and success are in the answer's metadata, which players do not show to the agent.

Beyond loopback a token is needed, unless whoever serves says that anybody may play: see
`server_guard`. The token goes over the wire in the clear, as everything does.
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
"""Besides those of the sessions; more are answered with status 503."""

IDLE_SECONDS = 600.0
"""A session that says nothing for so long ends; a trainer may think for minutes between steps."""

PING_SECONDS = 20.0
"""A player that does not answer WebSocket's ping within this time is gone."""

SHUTDOWN_SECONDS = 5


class Access(NamedTuple):
    """Who may play."""

    token: str | None = None
    """What players have to know."""
    is_open: bool = False
    """Anybody may play who reaches the address, which is then said in a warning."""


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
    """Serves the task in a thread while the block runs; gives the address.

    Port 0 takes a free one. Every session has an environment of its own; at most `max_sessions`
    run at a time, and one that is silent for `idle_seconds` ends. The task is not closed at the
    end. Raises `ServerError` if the port is taken or if the address can be reached from elsewhere
    and `access` has no token, and `PackageMissing` without the extra.
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
    """Serves the task until an interrupt, as `serving` does; `announce` is told the address."""
    server = _server(task, host, max_sessions, idle_seconds, access)
    with _listening(host, port) as listener:
        announce(_url(listener))
        server.run(sockets=[listener])


def _server(
    task: Task, host: str, max_sessions: int, idle_seconds: float, access: Access
) -> "uvicorn.Server":
    with needs("openenv"):
        import uvicorn
        import websockets  # noqa: F401  # without it uvicorn serves no WebSockets, quietly

        from stepagent.tasks.serving.app import TaskServer
        from stepagent.tasks.serving.guard import Guard
        from stepagent.tasks.serving.protocol import TimedProtocol
    is_local = _is_local(host)
    if not is_local and access.token is None:
        if not access.is_open:
            raise ServerError(
                f"{host}: others can reach this address; expected a token (--token-file, or the "
                "environment variable STEPAGENT_TOKEN), or --without-token to let anybody play"
            )
        logger.warning("%s: anybody who reaches this address can play: no token", printable(host))
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
    """Whether the address is of this machine alone; an unknown name is told when it is used."""
    try:
        found = socket.getaddrinfo(host or "0.0.0.0", None, type=socket.SOCK_STREAM)
    except OSError:
        return True
    return all(ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ServerError(f"{host}:{port}: cannot serve there: {reason}") from None


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_news(record: logging.LogRecord) -> bool:
    """Uvicorn takes a WebSocket that is refused with a reason for one that was forgotten."""
    return "without completing handshake" not in record.getMessage()
