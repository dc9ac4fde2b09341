"""Worker processes that play ALFWorld's games, several games each, and their replacement if lost.

A worker (`engine`) is started when it is first needed and ends when its input is closed. If this
process is killed, the workers end within about a second, even in the middle of a computation. A
worker is a separate program rather than a child of `multiprocessing`, which would run the caller's
script again and pickle all messages.
"""

import atexit
import json
import os
import subprocess
import sys
import tempfile
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import stepagent
from stepagent.processes.children import Lines, start_child
from stepagent.tasks.base import EngineLimits, EnvironmentLost, TaskDataError
from stepagent.tasks.data.optional_packages import PackageMissing

PACKAGES = ("textworld", "fast_downward", "alfworld")

MAX_COMMAND_CHARS = 1000
"""Longest command that is sent; valid ones are much shorter, and it must fit into a pipe."""


class Worker:
    """One worker process; threads may share it, and their requests are answered in turn."""

    def __init__(self, cache: Path, limits: EngineLimits) -> None:
        """Starts the process, which is ready after a few seconds; the first request waits for it.

        Raises `PackageMissing` without the extra, `EnvironmentLost` if it cannot be started.
        """
        for name in PACKAGES:
            if find_spec(name) is None:
                raise PackageMissing(name, "alfworld")
        self.limits = limits
        self._is_started = False
        self.slots: set[int] = set()
        self._lock = threading.RLock()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the process
        self._last_words = "no message"
        paths = (str(Path(stepagent.__file__).parents[1]), os.environ.get("PYTHONPATH"))
        environment = {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "ALFWORLD_DATA": tempfile.gettempdir(),  # made by the package on import if missing
            "OMP_NUM_THREADS": "1",
        }
        # Python and native code in the worker print, which must not mix with the answers.
        answers, descriptor = os.pipe()
        self._answers = os.fdopen(answers, "rb", buffering=0)
        self._lines = Lines(answers)
        arguments = (str(cache), str(descriptor), str(os.getpid()))
        try:
            self.process = start_child(
                # -P: files in the working directory must not shadow modules.
                [sys.executable, "-P", "-m", "stepagent.tasks.alfworld.engine", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=(descriptor,),
                env=os.environ | environment,
            )
        except OSError as error:
            raise EnvironmentLost(f"ALFWorld's engine cannot be started: {error}") from None
        finally:
            os.close(descriptor)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request; raises `EnvironmentLost` if the process dies or times out."""
        with self._lock:
            if not self.alive:
                self.end()
                raise EnvironmentLost(f"the process of ALFWorld's engine ended: {self._last_words}")
            try:
                self._send(json.dumps(request).encode() + b"\n")
                start = 0.0 if self._is_started else self.limits.start_timeout_seconds
                line = self._lines.next(start + self.limits.timeout_seconds)
                answer: dict[str, Any] = json.loads(line)
                self._is_started = True
            except BaseException as error:  # half an answer may remain in the pipe
                self.end()
                if not isinstance(error, (OSError, EOFError, ValueError)):
                    raise
                reason = error if isinstance(error, TimeoutError) else "died"
                raise EnvironmentLost(
                    f"the process of ALFWorld's engine {reason}: {self._last_words}"
                ) from error
            return answer

    def end(self) -> None:
        """Kills the process; all its games are lost."""
        self.process.kill()
        self.process.wait()
        with self._lock:  # a thread that waits for an answer must not find the pipes closed
            if not self._errors.closed:
                self._errors.seek(0)
                lines = self._errors.read().decode("utf-8", "replace").split("\n")
                self._last_words = next(filter(str.strip, reversed(lines)), self._last_words)
            self.abandon()

    def abandon(self) -> None:
        """Closes this process's ends of the pipes."""
        self._errors.close()
        self._answers.close()
        if self.process.stdin is not None:
            self.process.stdin.close()

    def _send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        while data:
            data = data[self.process.stdin.write(data) :]


class Game:
    """A slot in a worker, for one game at a time."""

    def __init__(self, worker: Worker, slot: int) -> None:
        """The slot must be reserved; see `Workers.take`."""
        self.worker = worker
        self._slot = slot
        self._file: Path | None = None

    def begin(self, file: Path, sha256: str | None = None) -> str:
        """Loads the game and returns its first text.

        Raises `TaskDataError` if the game does not load or the file does not have this hash.
        """
        self._file = file
        answer = self.worker.ask({"begin": str(file), "sha256": sha256, "slot": self._slot})
        if "error" in answer:
            raise TaskDataError(f"{file}: the game does not load: {answer['error']}")
        return str(answer["text"])

    def step(self, command: str) -> tuple[str, bool]:
        """The text after a command, and whether the game is won.

        Raises `TaskDataError` for a broken game, such as one with a grammar that never ends.
        """
        command = command.strip()
        sent = command if len(command) <= MAX_COMMAND_CHARS else ""
        answer = self.worker.ask({"step": sent, "slot": self._slot})
        if "error" in answer:
            raise TaskDataError(f"{self._file}: the game fails at {sent!r}: {answer['error']}")
        return str(answer["text"]), bool(answer["won"])

    def free(self) -> None:
        """Frees the slot for another game."""
        self.worker.slots.discard(self._slot)


class Workers:
    """At most `limit` worker processes, which share all games that are being played."""

    def __init__(self, cache: Path, limit: int, limits: EngineLimits) -> None:
        """Starts nothing yet; translated games are cached in the folder `cache`."""
        self._cache, self._limit, self._limits = cache, limit, limits
        self._lock = threading.Lock()
        self._workers: list[Worker] = []
        self._process_id = os.getpid()
        atexit.register(self.close)

    def take(self) -> Game:
        """Reserves a slot in the process with the fewest games; `free` it after use."""
        with self._lock:
            self._forget_lost()
            worker = min(self._workers, key=lambda worker: len(worker.slots), default=None)
            if worker is None or (worker.slots and len(self._workers) < self._limit):
                worker = Worker(self._cache, self._limits)
                self._workers.append(worker)
            slot = min(set(range(len(worker.slots) + 1)) - worker.slots)
            worker.slots.add(slot)
            return Game(worker, slot)

    def close(self) -> None:
        """Kills the processes; the next `take` starts a new one."""
        with self._lock:
            self._forget_lost()
            for worker in self._workers:
                worker.end()
            self._workers = []

    def _forget_lost(self) -> None:
        if self._process_id != os.getpid():  # after a fork the processes are the parent's
            for worker in self._workers:
                worker.abandon()
            self._workers, self._process_id = [], os.getpid()
        for worker in self._workers:
            if not worker.alive:
                worker.end()
        self._workers = [worker for worker in self._workers if worker.alive]
