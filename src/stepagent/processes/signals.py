"""Ctrl-C, SIGTERM and SIGHUP end a command within seconds, wherever it is at that moment.

The main thread gets an exception, so that locks are released and journals closed. It may not get
there in time: Python handles signals between its own instructions only, and a backward pass, a
socket or a thread that is joined can take minutes. So a second thread hears of the signal from the
operating system, ends the child processes, and ends this one when the time is up.
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
"""From the signal to the end; schedulers that kill wait for at least five."""


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        """Number of the signal."""
        super().__init__()
        self.number = number


@contextmanager
def stopping(last_words: Callable[[int], int], *, at_end: bool = False) -> Iterator[None]:
    """Inside, a signal raises `Stopped` in the main thread, and comes out as that whatever follows.

    If the process is still there `GRACE_SECONDS` later, or when a second signal comes, it ends at
    once, with the exit code that `last_words` returns for the first signal. Signals that were
    ignored, as `nohup` does with SIGHUP, stay ignored. With `at_end` the process ends right after
    this: signals are ignored from then on, since everything is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only there can signals be handled
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
        if stopped:  # libraries that are torn out of their work raise all kinds of errors
            raise Stopped(stopped[0]) from None
        raise
    finally:
        # After a signal all of this stays as it is, for what else is done before the end.
        if not stopped:
            for number in heard:
                signal.signal(number, signal.SIG_IGN if at_end else before[number])
            signal.set_wakeup_fd(wakeup_before)
            os.write(writer, b"\0")
            watcher.join()
            os.close(reader)
            os.close(writer)


def _next(reader: int, seconds: float | None, heard: list[signal.Signals]) -> int:
    """The next signal; 0 if none came in time, or if none is waited for any more."""
    while select.select([reader], [], [], seconds)[0]:
        number = os.read(reader, 1)[0]
        if number in (0, *heard):
            return number
    return 0
