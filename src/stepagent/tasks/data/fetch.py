"""One file over the network: it goes on where it was cut off, and has its name only when whole."""

import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx2

from stepagent.console.progress import track
from stepagent.files.atomic import file_hash
from stepagent.tasks.base import TaskDataError
from stepagent.tasks.data.files import Source
from stepagent.tasks.deadline import Deadline

CHUNK = 1 << 20

MAX_BYTES = 16 * 2**30
"""Of one file; the largest there is has 5.5 GB."""

TRIES = 3
"""How often a file is asked for, each time from where it was cut off, before that is an error."""

PAUSE_SECONDS = 2.0
"""Before the second try; twice as long before each further one."""

TIMEOUT_SECONDS = 60.0
"""How long a server may send nothing, or less than `SLOWEST` bytes for each second."""

SLOWEST = 100


def fetch(
    source: Source, folder: Path, task: str, *, timeout_seconds: float = TIMEOUT_SECONDS
) -> Path:
    """The file in `folder`, from where an earlier attempt was cut off; what is there is kept.

    A connection that breaks, and a server that sends nearly nothing for `timeout_seconds`, is tried
    again. Raises `TaskDataError` if that does not help, for an answer that is none, and for a file
    with another hash than its publisher states.
    """
    path = folder / source.file
    if path.exists():
        return path
    part = _Part(path)
    for left in reversed(range(TRIES)):
        try:
            while not _is_received(source, part, timeout_seconds):
                part.remove()
            break
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, OSError) as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise  # of the disk
            if left and _may_get_better(error):
                time.sleep(PAUSE_SECONDS * 2 ** (TRIES - 1 - left))
                continue
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise TaskDataError(
                f"{source.url}: {reason}; run the command again to go on, or put {source.file} "
                f"into a folder and run: stepagent download {task} --from FOLDER"
            ) from None
    if source.sha256 is not None and (found := file_hash(part.path)) != source.sha256:
        part.remove()
        raise TaskDataError(
            f"{source.url}: wrong checksum, expected sha256 {source.sha256}, got {found}; "
            "the file was removed"
        )
    part.path.rename(path)
    part.remove()
    return path


class _Part:
    """The beginning of a file, and beside it the server's name (ETag) of the version it is of."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f"{path.name}.part")
        self._version = path.with_name(f"{path.name}.etag")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def version(self) -> str | None:
        return self._version.read_text("latin-1") if self._version.exists() else None

    def begin(self, version: str | None) -> None:
        """Takes what was there away; this order never leaves a part with another's version."""
        self.remove()
        # A weak one (W/...) may stand for files with other bytes.
        if version is not None and version.startswith('"'):
            self._version.write_text(version, "latin-1")

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._version.unlink(missing_ok=True)


def _may_get_better(error: Exception) -> bool:
    """Whether another try can help: not where the server refuses or sends something else."""
    if isinstance(error, httpx2.HTTPStatusError):
        return error.response.status_code >= 500 or error.response.status_code in (408, 425, 429)
    return isinstance(error, httpx2.TransportError | OSError)


def _is_received(source: Source, part: _Part, timeout_seconds: float) -> bool:
    """Gets what is missing; False if what is there may be of another version of the file."""
    begun, version = part.size, part.version
    headers = {"Accept-Encoding": "identity"}
    if begun:
        if version is None and source.sha256 is None:
            return False  # nothing would tell a mix of two versions
        headers["Range"] = f"bytes={begun}-"
        if version is not None:
            headers["If-Range"] = version
    with (
        Deadline(timeout_seconds) as deadline,
        httpx2.Client(follow_redirects=True, timeout=timeout_seconds) as client,
        client.stream(
            "GET", source.url, headers=headers, extensions={"trace": deadline.watch}
        ) as answer,
    ):
        content_range = answer.headers.get("Content-Range", "")
        if begun and answer.status_code == httpx2.codes.RANGE_NOT_SATISFIABLE:
            # Killed after the last byte, or longer than the file is now.
            return content_range == f"bytes */{begun}"
        answer.raise_for_status()
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise httpx2.HTTPError("a web page came instead of the file")
        resumes = begun > 0 and answer.status_code == httpx2.codes.PARTIAL_CONTENT
        if resumes:
            is_same = version is None or answer.headers.get("ETag", version) == version
            if not is_same or not re.match(rf"bytes {begun}-", content_range):
                return False
        else:
            part.begin(answer.headers.get("ETag"))
        stated = answer.headers.get("Content-Length", "")
        size = int(stated) if re.fullmatch(r"\d{1,18}", stated) else 0
        if begun * resumes + size > MAX_BYTES:
            raise httpx2.HTTPError(f"more than {MAX_BYTES:,} bytes; expected a smaller file")
        with open(part.path, "ab" if resumes else "wb") as file:
            pieces = _kept_up(answer.iter_bytes(), deadline)
            for chunk in track(_chunks(pieces), f"{source.file} (MB)", total=size // CHUNK or None):
                if file.tell() + len(chunk) > MAX_BYTES:
                    raise httpx2.HTTPError(f"more than {MAX_BYTES:,} bytes came")
                file.write(chunk)
    return True


def _kept_up(pieces: Iterable[bytes], deadline: Deadline) -> Iterator[bytes]:
    """The pieces as long as enough of them come: the time limit moves on with what has come."""
    received = 0
    for piece in pieces:
        received += len(piece)
        if received >= SLOWEST * deadline.seconds:
            received = 0
            deadline.begin_again()
        yield piece


def _chunks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same in pieces of `CHUNK`; what came is also kept where the rest does not come."""
    gathered = bytearray()
    try:
        for piece in pieces:
            gathered += piece
            while len(gathered) >= CHUNK:
                yield bytes(gathered[:CHUNK])
                del gathered[:CHUNK]
    except httpx2.TransportError:
        if gathered:
            yield bytes(gathered)
        raise
    if gathered:
        yield bytes(gathered)
