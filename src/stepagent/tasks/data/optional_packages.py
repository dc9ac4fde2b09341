"""Optional packages: imported only where a task needs them, with an error that names the extra."""

from collections.abc import Iterator
from contextlib import contextmanager


class PackageMissing(RuntimeError):
    """An optional package is missing; the message is one line with the command to install it."""

    def __init__(self, package: str | None, extra: str) -> None:
        """`extra` is the extra of stepagent that includes the package."""
        super().__init__(
            f"this needs the package {package}; install it: pip install 'stepagent[{extra}]'"
        )


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Wraps imports of packages of an extra; raises `PackageMissing` if one is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise PackageMissing(error.name, extra) from None
