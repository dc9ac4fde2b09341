"""Several processes started by Ray Train, on this machine or on a cluster.

Ray starts the processes, joins them, and starts them all again if one dies or its machine does.
Each then calls what it was given, as torchrun's processes do.
"""

import os
from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory
from typing import Any

MISSING = "--launcher ray: Ray is not installed; expected: pip install 'stepagent[ray]'"


class RayError(RuntimeError):
    """The work cannot be done with Ray; the message is one line."""


def run_with_ray(
    work: Callable[[Sequence[str]], None],
    args: Sequence[str],
    *,
    num_workers: int,
    address: str | None,
    restarts: int,
) -> None:
    """Calls `work(args)` in so many processes, in the folder where this one was started.

    `address` is that of a cluster; without it Ray starts one on this machine. After a failure
    all processes are started again, at most `restarts` times. Raises `RayError` if Ray is not
    installed, cannot start, or if the last attempt failed too.
    """
    try:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError:
        raise RayError(MISSING) from None
    import torch

    has_gpu = torch.cuda.is_available()
    settings = {"work": work, "args": list(args), "folder": os.getcwd()}
    with TemporaryDirectory() as storage:
        ray.init(address=address, log_to_driver=True, logging_level="ERROR")
        try:
            TorchTrainer(
                _in_worker,
                train_loop_config=settings,
                torch_config=TorchConfig(backend="nccl" if has_gpu else "gloo"),
                scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=has_gpu),
                run_config=RunConfig(
                    storage_path=storage, failure_config=FailureConfig(max_failures=restarts)
                ),
            ).fit()
        except Exception as error:
            raise RayError(f"--launcher ray: {_reason(error)}") from None
        finally:
            ray.shutdown()


def _in_worker(settings: dict[str, Any]) -> None:
    os.chdir(settings["folder"])
    try:
        settings["work"](settings["args"])
    except SystemExit as ended:
        if ended.code:
            raise RuntimeError(f"a worker ended with exit code {ended.code}") from None


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:500] or type(error).__name__
