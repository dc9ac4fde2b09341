"""Several processes started by Ray Train, on this machine or on a cluster.

Ray starts the processes and joins them. Each then calls what it was given, as torchrun's processes
do. If one is lost, or its machine is, all are started again.
"""

import io
import logging
import os
import secrets
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from stepagent.processes import launched
from stepagent.processes.signals import SIGNALS

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

NODE = "ray.io/node-id"
"""Ray's label for the machine that something runs on."""


class RayError(RuntimeError):
    """The work cannot be done with Ray; the message is one line."""


class Heard(NamedTuple):
    """What the processes have said since the last time."""

    texts: list[tuple[str, str]]
    """What they printed: `stdout` or `stderr`, and a text."""
    ended: tuple[int, str] | None
    """The exit code of a process that explained why it ended, and its line."""


class Told:
    """An actor of Ray that keeps what the processes say until who started them hears it."""

    def __init__(self) -> None:
        """Nothing was said yet."""
        self._texts = list[tuple[str, str]]()
        self._ended: tuple[int, str] | None = None
        self._begun = Counter[str]()

    def begin(self, rank: str) -> int:
        """How often this process was begun before."""
        self._begun[rank] += 1
        return self._begun[rank] - 1

    def add(self, stream: str, text: str) -> None:
        """Takes a text for `stdout` or `stderr`."""
        self._texts.append((stream, text))

    def end(self, code: int, line: str) -> None:
        """Takes why a process ends; the first one counts, since others follow from it."""
        self._ended = self._ended or (code, line)

    def heard(self) -> Heard:
        """What was said since the last time."""
        texts, self._texts = self._texts, []
        return Heard(texts, self._ended)


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

    `address` is that of a cluster; without it Ray starts on this machine, and ends with the work.
    If a process is lost, all are started again, at most `restarts` times, with `work(again)`. An
    error that `work` explains is final: it would occur again.

    Raises `RayError` for such an error, and if Ray is not installed or cannot start; `Lost` if the
    last attempt lost a process too.
    """
    os.environ |= ENVIRONMENT
    if not address:
        # Its processes listen to other machines, and would do what anybody tells them.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        import ray
    except ImportError:
        raise RayError(
            "--launcher ray: Ray is not installed; expected: pip install 'stepagent[ray]'"
        ) from None
    more: dict[str, Any] = {} if address else {"include_dashboard": False}
    try:
        ray.init(address=address or "local", logging_level="CRITICAL", log_to_driver=False, **more)
    except Exception as error:
        raise RayError(f"--launcher ray: cannot be reached: {_last_line(error)}") from None
    _restore_signals()
    try:
        resources = ray.cluster_resources()
        kind = "GPU" if resources.get("GPU") else "CPU"
        if not address and num_workers > resources[kind]:
            raise RayError(
                f"--num-workers {num_workers}: this machine has {resources[kind]:g} {kind}s; "
                "expected at most one process for each"
            )
        # In the machine of this program: it does not outlive it.
        here = ray.get_runtime_context().get_node_id()
        told = ray.remote(Told).options(num_cpus=0, label_selector={NODE: here}).remote()
        settings = {
            "work": work, "args": [*args], "again": [*again], "folder": os.getcwd(), "told": told,
        }  # fmt: skip
        with TemporaryDirectory() as folder:
            trainer = _trainer(settings, num_workers, restarts, folder, use_gpu=kind == "GPU")
            _follow(trainer, told)
    finally:
        ray.shutdown()


def _restore_signals() -> None:
    """Makes signals reach the handlers of Python, beside which Ray prints the state of its code."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.getsignal(number))


def _trainer(
    settings: dict[str, Any], num_workers: int, restarts: int, folder: str, *, use_gpu: bool
) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from stepagent.processes import ranks

    return TorchTrainer(
        _in_worker,
        train_loop_config=settings,
        torch_config=TorchConfig(
            backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo",
            timeout_s=int(ranks.LONGEST_WAIT.total_seconds()),
        ),
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu),
        run_config=RunConfig(
            storage_path=folder, failure_config=FailureConfig(max_failures=restarts)
        ),
    )


def _follow(trainer: Any, told: Any) -> None:
    """Runs the processes to their end, and prints what they print."""
    import ray

    failed = list[BaseException]()

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failed.append(error)

    # In the main thread, Ray would replace our signal handlers.
    fitting = threading.Thread(target=fit, daemon=True)
    fitting.start()
    is_running = True
    while is_running:
        fitting.join(0.2)
        is_running = fitting.is_alive()
        heard: Heard = ray.get(told.heard.remote())
        for stream, text in heard.texts:
            print(text, end="", file=getattr(sys, stream), flush=True)
        if heard.ended:
            code, line = heard.ended
            raise RayError(line or f"a process ended with exit code {code}, for the reason above")
    if failed:
        raise launched.Lost(f"processes were lost too often: {_last_line(failed[0])}")


def _in_worker(settings: Mapping[str, Any]) -> None:
    import ray

    told = settings["told"]
    os.environ[launched.RAY] = "1"
    os.makedirs(settings["folder"], exist_ok=True)
    os.chdir(settings["folder"])
    logging.getLogger("stepagent").propagate = False  # Ray's own logger would print it again
    out, error = (Teller(stream, told) for stream in ("stdout", "stderr"))
    attempt = ray.get(told.begin.remote(os.environ["RANK"]))
    try:
        with redirect_stdout(out), redirect_stderr(error):
            if attempt and launched.number() == 0:
                print(f"a process was lost; all start again ({attempt})", file=sys.stderr)
            settings["work"](settings["again" if attempt else "args"])
    except SystemExit as ended:
        if ended.code not in (None, 0, os.EX_TEMPFAIL):
            code = ended.code if isinstance(ended.code, int) else 1
            ray.get(told.end.remote(code, getattr(ended, "line", "")))
        if ended.code:
            raise RuntimeError(getattr(ended, "line", "") or f"exit code {ended.code}") from None


def _last_line(error: BaseException) -> str:
    failures = [*getattr(error, "worker_failures", {}).values()]
    lines = str(failures[0] if failures else error).strip().splitlines()
    return lines[-1][:300] if lines else type(error).__name__
