"""Several processes started by Ray Train, on this machine or on a cluster.

Ray starts the processes and joins them. Each then calls what it was given, as torchrun's processes
do. If one is lost, or its machine is, all are started again.
"""

import io
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from tempfile import TemporaryDirectory
from typing import Any

from stepagent.console.printable import printable
from stepagent.processes import launched

Work = Callable[[Sequence[str]], None]

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""What Ray reads: nothing is reported to its makers, and processes work where they are told to."""

logger = logging.getLogger(__name__)


class RayError(RuntimeError):
    """The work cannot be done with Ray; the message is one line."""


class WorkerEnded(Exception):
    """A process ended with an exit code, and the line that says why, if it has said so."""

    def __init__(self, code: int, line: str) -> None:
        """Both are kept when Ray sends the error to another machine."""
        super().__init__(code, line)
        self.code = code
        self.line = line


class Told:
    """What the processes print, until the program that started them takes it; an actor of Ray."""

    def __init__(self) -> None:
        """Holds nothing yet."""
        self._texts = list[tuple[str, str]]()

    def add(self, stream: str, text: str) -> None:
        """Keeps a text for `stdout` or `stderr`."""
        self._texts.append((stream, text))

    def take(self) -> list[tuple[str, str]]:
        """Returns what was kept, and forgets it."""
        texts, self._texts = self._texts, []
        return texts


class Teller(io.TextIOBase):
    """A process's `stdout` or `stderr`, which tells the actor `told` what is printed."""

    def __init__(self, stream: str, told: Any) -> None:
        """`stream` is the name."""
        self._stream, self._told, self._last = stream, told, None

    def write(self, text: str) -> int:
        """Sends the text, and does not wait for it to arrive."""
        self._last = self._told.add.remote(self._stream, text)
        return len(text)

    def flush(self) -> None:
        """Waits until it has arrived, but not for ever."""
        if self._last is not None:
            import ray

            with suppress(ray.exceptions.RayError):
                ray.get(self._last, timeout=5)


def run_with_ray(
    work: Work,
    args: Sequence[str],
    again: Sequence[str],
    *,
    num_workers: int,
    address: str | None,
    restarts: int,
) -> None:
    """Calls `work(args)` in so many processes, in the folder where this one was started.

    `address` is that of a cluster; without it Ray starts on this machine, and ends with the block.
    If a process is lost, all are started again, at most `restarts` times, with `work(again)`. An
    error that `work` explains is final: it would occur again.

    Raises `RayError` for such an error, and if Ray is not installed, cannot start, or if the last
    attempt failed too.
    """
    os.environ |= ENVIRONMENT
    try:
        import ray
    except ImportError:
        raise RayError(
            "--launcher ray: Ray is not installed; expected: pip install 'stepagent[ray]'"
        ) from None
    is_local = address is None
    more: dict[str, Any] = {"include_dashboard": False} if is_local else {}
    try:
        ray.init(address=address or "local", logging_level="CRITICAL", log_to_driver=False, **more)
    except Exception as error:
        raise RayError(f"--launcher ray: cannot be reached: {_first_line(error)}") from None
    try:
        resources = ray.cluster_resources()
        kind = "GPU" if resources.get("GPU") else "CPU"
        if is_local and num_workers > resources[kind]:
            raise RayError(
                f"--num-workers {num_workers}: this machine has {resources[kind]:g} {kind}s; "
                "expected at most one process for each"
            )
        for attempt in range(restarts + 1):
            words = again if attempt else args
            reason = _attempt(work, words, num_workers, use_gpu=kind == "GPU")
            if reason is None:
                return
            left = restarts - attempt
            logger.warning("a process was lost: %s; restarts left: %d", reason, left)
        raise RayError(f"--launcher ray: a process was lost {restarts + 1} times; last: {reason}")
    finally:
        ray.shutdown()


def _attempt(work: Work, args: Sequence[str], num_workers: int, *, use_gpu: bool) -> str | None:
    """Runs the processes to their end; returns why one was lost, None if none was.

    Raises `RayError` for an error that `work` explains.
    """
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from stepagent.processes import ranks

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    told = ray.remote(Told).options(num_cpus=0, scheduling_strategy=here).remote()
    settings = {"work": work, "args": list(args), "folder": os.getcwd(), "told": told}
    failed = list[BaseException]()
    with TemporaryDirectory() as storage:
        trainer = TorchTrainer(
            _in_worker,
            train_loop_config=settings,
            torch_config=TorchConfig(
                backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo",
                timeout_s=int(ranks.LONGEST_WAIT.total_seconds()),
            ),
            scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu),
            run_config=RunConfig(
                storage_path=storage, logging_config=LoggingConfig(log_level="CRITICAL")
            ),
        )

        def fit() -> None:
            try:
                trainer.fit()
            except BaseException as error:
                failed.append(error)

        # In the main thread, Ray would replace our signal handlers.
        fitting = threading.Thread(target=fit, daemon=True)
        fitting.start()
        while fitting.is_alive():
            fitting.join(0.2)
            for stream, text in ray.get(told.take.remote()):
                print(text, end="", file=getattr(sys, stream), flush=True)
    return _reason(failed[0]) if failed else None


def _in_worker(settings: Mapping[str, Any]) -> None:
    os.environ[launched.RAY] = "1"
    os.makedirs(settings["folder"], exist_ok=True)
    os.chdir(settings["folder"])
    logging.getLogger("stepagent").propagate = False  # Ray's own logger would print it again
    out, error = (Teller(stream, settings["told"]) for stream in ("stdout", "stderr"))
    try:
        with redirect_stdout(out), redirect_stderr(error):
            settings["work"](settings["args"])
    except SystemExit as ended:
        if ended.code:
            code = ended.code if isinstance(ended.code, int) else 1
            raise WorkerEnded(code, getattr(ended, "line", "")) from None


def _reason(error: BaseException) -> str:
    """Why a process was lost; raises `RayError` for an error that is final."""
    failures = getattr(error, "worker_failures", {}).values()
    # Ray wraps what a process raised.
    causes = [getattr(failure, "_base_exc", failure) for failure in failures]
    for cause in causes:
        if isinstance(cause, WorkerEnded) and cause.code != os.EX_TEMPFAIL:
            raise RayError(cause.line or f"a process ended with exit code {cause.code}; see above")
    lines = [c.line if isinstance(c, WorkerEnded) else _first_line(c) for c in causes]
    return lines[0] if lines else _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return printable(lines[0] if lines else type(error).__name__, limit=300)
