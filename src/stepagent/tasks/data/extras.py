"""Packages that only some tasks need: they are imported where they are used, and may be missing."""

from collections.abc import Iterator
from contextlib import contextmanager


class PackageMissing(RuntimeError):
    """A package is not installed; the message is one line and says how to get it."""

    def __init__(self, package: str | None, extra: str) -> None:
        """`extra` is the one of stepagent that brings the package."""
        super().__init__(
            f"this needs the package {package}; install it: pip install 'stepagent[{extra}]'"
        )


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """For imports of packages that the extra brings; raises `PackageMissing` if there is none."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise PackageMissing(error.name, extra) from None
