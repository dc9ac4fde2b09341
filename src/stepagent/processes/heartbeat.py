"""Notices that another process of the same work is lost, so that this one ends and says so.

A process that dies closes its connections: whoever waits for it gets an error from
torch.distributed, which becomes one line here. One that hangs (stopped, or its machine is cut off)
closes nothing. So each process counts up a number in the store through which they found each other,
and watches the number of the next one.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from stepagent.processes.children import end_children
from stepagent.processes.launched import Lost

SILENCE = 300.0
"""Seconds without a sign of life after which a process is given up.

Long, since a call into C may keep Python from running any other thread.
"""
BEATS = 30
"""How often a process gives a sign of life in that time."""


@contextmanager
def losses_told() -> Iterator[None]:
    """Within the block, an error of torch.distributed becomes `Lost`."""
    try:
        yield
    except RuntimeError as error:
        # Gloo raises plain errors, with the names of its source files.
        is_gloo = type(error) is RuntimeError and "gloo/" in str(error)
        if not (is_gloo or isinstance(error, dist.DistError)):
            raise
        raise Lost("another process has ended or cannot be reached") from None


@contextmanager
def watched(number: int, count: int, give_up: Callable[[str], int]) -> Iterator[None]:
    """Within the block, process `number` of `count` shows that it is alive and watches the next.

    If that one is silent for `SILENCE` seconds, this process ends, whatever it is doing, with the
    exit code that `give_up` returns for a line that says why.
    """
    done, news = threading.Event(), threading.Event()

    def beat() -> None:
        # A connection of its own: the main thread's may be waiting for an answer.
        with suppress(RuntimeError):
            store = _store()
            seen = 0
            while True:
                store.add(str(number), 1)
                now = store.add(str((number + 1) % count), 0)
                if now != seen:
                    news.set()
                seen = now
                if done.wait(SILENCE / BEATS):
                    return
        # A store that cannot be reached brings no news either: `watch` gives up in time.

    def watch() -> None:
        while news.wait(SILENCE) and not done.is_set():
            news.clear()
        if not done.is_set():
            end_children()
            silent = (number + 1) % count
            os._exit(give_up(f"process {silent} has not answered for {SILENCE:g} seconds"))

    threads = [threading.Thread(target=job, daemon=True) for job in (beat, watch)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        news.set()


def _store() -> Any:
    """The store by whose address torchrun or Ray brought the processes together."""
    store = dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=SILENCE),
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"stepagent/alive/{attempt}", store)  # type: ignore[attr-defined]
