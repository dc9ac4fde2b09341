"""Ends a command within seconds of Ctrl-C, SIGTERM or SIGHUP, whatever it is doing.

The signal raises an exception in the main thread, so that locks are released and journals closed.
That may come too late: Python handles signals only between its own instructions, and a backward
pass, a socket or joining a thread can take minutes. So a second thread also receives the signal,
kills the child processes, and ends this process when the time is up.
"""

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stepagent.processes.children import end_children

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

GRACE_SECONDS = 4.0
"""From the signal to the forced end; schedulers wait at least five seconds before they kill."""


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        """`number` is the signal's number."""
        super().__init__()
        self.number = number


@contextmanager
def stopping(last_words: Callable[[int], int], *, at_end: bool = False) -> Iterator[None]:
    """Within the block, a signal raises `Stopped` in the main thread.

    The block then always ends with `Stopped`, whatever other error follows. If the process is still
    running after `GRACE_SECONDS`, or a second signal arrives, it ends at once with the exit code
    that `last_words` returns for the first signal. Signals that were ignored, such as SIGHUP under
    `nohup`, stay ignored. With `at_end`, the process ends right after the block, so signals are
    ignored from then on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can handle signals
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heard = [number for number, handler in before.items() if handler != signal.SIG_IGN]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    stopped: list[int] = []

    def handle(number: int, _: object) -> None:
        if not stopped:
            stopped.append(number)
            raise Stopped(number)

    def watch() -> None:
        if number := _next(reader, None, heard):
            end_children()
            _next(reader, GRACE_SECONDS, heard)
            os._exit(last_words(number))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    wakeup_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in heard:
        signal.signal(number, handle)
    try:
        yield
    except BaseException:
        if stopped:  # interrupted libraries raise all kinds of errors
            raise Stopped(stopped[0]) from None
        raise
    finally:
        # After a signal the handlers stay, to guard the clean-up before the process ends.
        if not stopped:
            for number in heard:
                signal.signal(number, signal.SIG_IGN if at_end else before[number])
            signal.set_wakeup_fd(wakeup_before)
            os.write(writer, b"\0")
            watcher.join()
            os.close(reader)
            os.close(writer)


def _next(reader: int, seconds: float | None, heard: list[signal.Signals]) -> int:
    """The next signal; 0 if none arrives in time, or if the block has ended."""
    while select.select([reader], [], [], seconds)[0]:
        number = os.read(reader, 1)[0]
        if number in (0, *heard):
            return number
    return 0
