"""Says which call of a user's environment does not return, since a thread cannot be stopped."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from stepagent.console.printable import printable

PATIENCE = 60.0
"""Seconds after which a call is reported."""

logger = logging.getLogger(__name__)


@contextmanager
def reported_if_slow(what: str) -> Iterator[None]:
    """Logs one warning if the block takes longer than `PATIENCE`; it is not interrupted."""
    timer = threading.Timer(PATIENCE, _report, [what])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _report(what: str) -> None:
    logger.warning(
        "%s has not returned for %g s, and everything waits for it; if it never will, stop with "
        "Ctrl-C and correct the environment",
        printable(what, limit=300), PATIENCE,
    )  # fmt: skip
