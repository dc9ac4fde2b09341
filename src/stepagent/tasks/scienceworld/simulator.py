"""ScienceWorld simulators: many independent copies of the engine in one Java process.

The engine keeps state in static fields (object numbers, the random generator, the active
simplifications), so two simulators in one JVM would disturb each other: loading one renumbers the
objects of the next. Here each simulator has its own class loader and shares nothing with others.
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

import scienceworld
from py4j.protocol import Py4JError, Py4JJavaError

from stepagent.tasks.base import EngineLimits, EnvironmentLost, Split
from stepagent.tasks.scienceworld.java import JavaProcess, cause_of

logger = logging.getLogger(__name__)

JAR = Path(scienceworld.__file__).with_name("scienceworld.jar")


class EngineError(RuntimeError):
    """The engine threw a Java exception; the simulator must `load` a world again."""


class Simulator:
    """One engine, isolated from the others in the same JVM; for one thread at a time."""

    def __init__(self, java: JavaProcess) -> None:
        """Loads the engine, which takes about a second; raises what `call` raises."""
        assert java.gateway is not None  # `connect` comes first
        self.java, self._gateway = java, java.gateway
        self._arguments: dict[int, Any] = {}
        try:
            self._methods, self._engine = self._start()
        except Py4JJavaError as error:
            raise EngineError(_java_message(error)) from error
        except Py4JError as error:
            raise self._lost(error) from error

    def call(self, method: str, *arguments: str | int | bool) -> Any:
        """Calls a method of the engine's `PythonInterface` and returns its result.

        Raises `EngineError` if the method throws, and `EnvironmentLost` if the JVM died or gives no
        answer within the time limit.
        """
        if not self.java.alive:
            raise EnvironmentLost(f"the simulator's Java process {self.java.lost or 'died'}")
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
        """Loads a world and returns the engine's expert actions for it."""
        try:
            # The engine caches search routes that it shuffled for an earlier world; they would make
            # the gold path depend on what this simulator did before.
            self._clear_routes()
        except Py4JError as error:
            raise self._lost(error) from error
        self.call("load", task_type, variation, simplification, True)
        return self.call_for_strings("getGoldActionSequence")

    def splits(self, task_type: str) -> dict[Split, list[int]]:
        """The variations of a task type by split, as the engine divides them."""
        self.call("taskStr_$eq", task_type)  # enough to ask for splits, and faster than `load`
        return {
            split: [int(n) for n in self.call_for_strings(f"getVariations{split.capitalize()}")]
            for split in get_args(Split)
        }

    def call_for_strings(self, method: str) -> list[str]:
        """Like `call`, for a method without arguments that returns a list; items become strings."""
        items = self.call(method)
        try:
            # Iterating would call classes of this loader through py4j; see `_start`.
            text = self._gateway.jvm.java.util.ArrayList(items)
            return [str(item) for item in text]
        except Py4JError as error:
            raise self._lost(error) from error

    def _start(self) -> tuple[dict[str, Any], Any]:
        gateway = self._gateway
        lang, net = gateway.jvm.java.lang, gateway.jvm.java.net
        urls = gateway.new_array(net.URL, 1)
        urls[0] = gateway.jvm.java.io.File(str(JAR)).toURI().toURL()
        loader = net.URLClassLoader(urls, lang.ClassLoader.getPlatformClassLoader())
        interface = loader.loadClass("scienceworld.runtime.pythonapi.PythonInterface")
        self._arguments = {n: gateway.new_array(lang.Object, n) for n in (0, 1, 4)}
        constructor = interface.getDeclaredConstructor(gateway.new_array(lang.Class, 0))
        # py4j caches methods by class name, so it would call one loader's method on another
        # loader's object; calls go through java.lang.reflect.Method instead.
        methods = {method.getName(): method for method in interface.getMethods()}
        self._loader = loader
        return methods, constructor.newInstance(self._arguments[0])

    def _clear_routes(self) -> None:
        no_types = self._gateway.new_array(self._gateway.jvm.java.lang.Class, 0)
        nothing = self._arguments[0]
        finder = self._loader.loadClass("scienceworld.goldagent.PathFinder")
        routes = finder.getMethod("precomputedExhaustivePaths", no_types).invoke(None, nothing)
        clear = self._loader.loadClass("scala.collection.mutable.Map").getMethod("clear", no_types)
        clear.invoke(routes, nothing)

    def _lost(self, error: Py4JError) -> EnvironmentLost:
        seconds = self.java.limits.timeout_seconds
        is_late = isinstance(cause_of(error), TimeoutError)
        reason = f"gave no answer in time ({seconds:g} s)" if is_late else "died"
        logger.debug("simulator lost", exc_info=error)
        self.java.end(reason)
        return EnvironmentLost(f"the simulator's Java process {reason}; reset the environment")


class SimulatorPool:
    """Simulators for any number of environments and threads, all in one JVM.

    The JVM starts with the first simulator and is replaced when it dies. Simulators that were given
    back are reused, since making one takes about a second.
    """

    def __init__(self, limits: EngineLimits, max_heap_mb: int = 2048) -> None:
        """`limits` are the time limits of the JVM; its heap may grow to `max_heap_mb` MiB."""
        self.limits = limits
        self.max_heap_mb = max_heap_mb
        self._lock = threading.Lock()
        self._java: JavaProcess | None = None
        self._process_id = os.getpid()
        self._free: list[Simulator] = []
        self._users: weakref.WeakSet[object] = weakref.WeakSet()
        atexit.register(self._end)

    @property
    def process(self) -> "subprocess.Popen[bytes] | None":
        """The JVM, or None while none runs."""
        return self._java.process if self._java is not None and self._java.alive else None

    def take(self, user: object) -> Simulator:
        """Takes a simulator for exclusive use; `give_back` it after use, `close` at the end."""
        with self._lock:
            self._users.add(user)
            java = self._running()
        java.connect()  # not under the lock: a start can hang, and `close` must be able to end it
        with self._lock:
            while self._free:
                simulator = self._free.pop()
                if simulator.java is java:
                    return simulator
        return Simulator(java)

    def give_back(self, simulator: Simulator) -> None:
        """Puts a simulator back into the pool; lost ones are dropped."""
        with self._lock:
            if simulator.java is self._java and simulator.java.alive:
                self._free.append(simulator)

    def close(self, user: object) -> None:
        """Ends the JVM if `user` was the last; open environments then raise `EnvironmentLost`."""
        with self._lock:
            self._users.discard(user)
            if not self._users:
                self._end()

    def _end(self) -> None:
        self._free.clear()
        if self._java is not None and self._process_id == os.getpid():
            self._java.end("was closed")
        self._java = None

    def _running(self) -> JavaProcess:
        if self._process_id != os.getpid():
            # After a fork the JVM belongs to the parent, and its sockets must not be shared.
            if self._java is not None:
                self._java.abandon()
            self._java, self._free, self._process_id = None, [], os.getpid()
        if self._java is None or not self._java.alive:
            self._free.clear()
            self._java = JavaProcess(JAR.parent, self.limits, self.max_heap_mb)
        return self._java


@functools.cache
def shared_pool(limits: EngineLimits, max_heap_mb: int) -> SimulatorPool:
    """This process's pool for these settings, so that tasks with equal settings share one JVM."""
    return SimulatorPool(limits, max_heap_mb)


def _java_message(error: Py4JJavaError) -> str:
    """The innermost Java exception, as one line."""
    cause = error.java_exception
    try:
        while (inner := cause.getCause()) is not None:
            cause = inner
        return str(cause.toString())
    except Py4JError:
        return "unknown Java exception"
