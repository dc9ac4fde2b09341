"""Downloads one file; an interrupted download resumes, and only a complete file gets its name."""

import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx2

from stepagent.console.progress import track
from stepagent.files.atomic import file_hash
from stepagent.tasks.base import TaskDataError
from stepagent.tasks.data.sources import Source
from stepagent.tasks.deadline import Deadline

CHUNK = 1 << 20

MAX_BYTES = 16 * 2**30
"""Largest file that is accepted; the largest real one has 5.5 GB."""

TRIES = 3
"""Attempts per file before giving up; each resumes where the last one stopped."""

PAUSE_SECONDS = 2.0
"""Pause before the second attempt; doubles before each further one."""

TIMEOUT_SECONDS = 60.0
"""How long a server may send fewer than `MIN_BYTES_PER_SECOND` before the attempt fails."""

MIN_BYTES_PER_SECOND = 100


def fetch(
    source: Source, folder: Path, task: str, *, timeout_seconds: float = TIMEOUT_SECONDS
) -> Path:
    """Downloads the file into `folder` and returns its path; an existing file is kept.

    Resumes an earlier attempt. A broken connection, or a server that sends almost nothing for
    `timeout_seconds`, is tried again. Raises `TaskDataError` if that does not help, if the server
    answers with something else than the file, and if the file's hash is not the published one.
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
                raise  # a fault of the disk, not of the network
            if left and _may_get_better(error):
                time.sleep(PAUSE_SECONDS * 2 ** (TRIES - 1 - left))
                continue
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise TaskDataError(
                f"{source.url}: {reason}; run the command again to resume, or put {source.file} "
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
    """The part of a file that has arrived, with the ETag of the version it belongs to."""

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
        """Starts over; in this order, no part is ever left with the ETag of another version."""
        self.remove()
        # A weak ETag (W/...) may stand for files whose bytes differ.
        if version is not None and version.startswith('"'):
            self._version.write_text(version, "latin-1")

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._version.unlink(missing_ok=True)


def _may_get_better(error: Exception) -> bool:
    """Whether another attempt can help: not if the server refuses or sends something else."""
    if isinstance(error, httpx2.HTTPStatusError):
        return error.response.status_code >= 500 or error.response.status_code in (408, 425, 429)
    return isinstance(error, httpx2.TransportError | OSError)


def _is_received(source: Source, part: _Part, timeout_seconds: float) -> bool:
    """Downloads what is missing; False if the part may belong to another version of the file."""
    begun, version = part.size, part.version
    headers = {"Accept-Encoding": "identity"}
    if begun:
        if version is None and source.sha256 is None:
            return False  # a mix of two versions would go unnoticed
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
            # The last attempt was killed after the last byte, or the file is shorter now.
            return content_range == f"bytes */{begun}"
        answer.raise_for_status()
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise httpx2.HTTPError("the server sent a web page instead of the file")
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
            raise httpx2.HTTPError(f"announces more than {MAX_BYTES:,} bytes; expected fewer")
        with open(part.path, "ab" if resumes else "wb") as file:
            pieces = _fast_enough(answer.iter_bytes(), deadline)
            for chunk in track(_chunks(pieces), f"{source.file} (MB)", total=size // CHUNK or None):
                if file.tell() + len(chunk) > MAX_BYTES:
                    raise httpx2.HTTPError(f"sent more than {MAX_BYTES:,} bytes; expected fewer")
                file.write(chunk)
    return True


def _fast_enough(pieces: Iterable[bytes], deadline: Deadline) -> Iterator[bytes]:
    """Passes the pieces on; restarts the time limit whenever enough bytes have arrived."""
    received = 0
    for piece in pieces:
        received += len(piece)
        if received >= MIN_BYTES_PER_SECOND * deadline.seconds:
            received = 0
            deadline.begin_again()
        yield piece


def _chunks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Regroups the pieces into chunks of `CHUNK` bytes; a broken connection loses none of them."""
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
