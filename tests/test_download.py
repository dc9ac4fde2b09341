"""Task data is downloaded in pieces, checked, and installed completely or not at all."""

import fcntl
import gzip
import hashlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from signal import SIGKILL

import pytest

from stepagent.cli import main
from stepagent.tasks.base import TaskDataError
from stepagent.tasks.data import fetch as fetching
from stepagent.tasks.data.fetch import fetch
from stepagent.tasks.data.json_files import read_json, read_records
from stepagent.tasks.data.sources import Prepared, Source, TaskData, data_folder, required
from stepagent.tasks.install import DATA, download, install, manifest_of

BODY = bytes(range(256)) * 40_000  # about ten chunks
SHA256 = hashlib.sha256(BODY).hexdigest()


class Server:
    """Serves `body`; `cut_at` ends an answer after that many bytes, `ranges` allows ranges."""

    def __init__(self) -> None:
        self.body = BODY
        self.etag: str | None = None
        self.heeds_if_range = True
        self.kind = "application/zip"
        self.cut_at: int | None = None
        self.ranges = True
        self.status = 200
        self.asked: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                outer.asked.append(asked)
                whole, wanted = outer.body, self.headers.get("If-Range", outer.etag)
                is_same = wanted == outer.etag or not outer.heeds_if_range
                ranges = asked and outer.ranges and is_same
                start = int(asked.removeprefix("bytes=")[:-1]) if asked and ranges else 0
                if outer.status != 200:
                    self.send_error(outer.status)
                    return
                if start >= len(whole) > 0:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(whole)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                body = whole[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Type", outer.kind)
                if outer.etag is not None:
                    self.send_header("ETag", outer.etag)
                if start:
                    end = f"{len(whole) - 1}/{len(whole)}"
                    self.send_header("Content-Range", f"bytes {start}-{end}")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                cut, outer.cut_at = outer.cut_at, None
                with suppress(ConnectionError):  # some leave before the end
                    self.wfile.write(body[:cut])
                if cut is not None:
                    self.close_connection = True

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/file.bin"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STEPAGENT_TASK_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(fetching, "TRIES", 1)
    monkeypatch.setattr(fetching, "PAUSE_SECONDS", 0.0)
    return tmp_path


@pytest.fixture
def toy(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A task whose data is the number of bytes in one file."""

    def prepare(source: Path, out: Path, *, skip_invalid: bool) -> Prepared:
        files = tuple(sorted(source.rglob("*.bin")))
        if not files:
            raise TaskDataError(f"{source}: no .bin file below it")
        (out / "size.json").write_text(str(sum(f.stat().st_size for f in files)))
        return Prepared(counts={"train": 3}, read=files, skipped={"odd": 1} if skip_invalid else {})

    sources = (Source(url=server.url, file="file.bin", sha256=SHA256),)
    monkeypatch.setitem(DATA, "webshop", TaskData(sources, prepare))
    return "webshop"


def test_a_file_arrives_whole(server: Server, tmp_path: Path) -> None:
    path = fetch(Source(url=server.url, file="f", sha256=SHA256), tmp_path, "webshop")
    assert path.read_bytes() == BODY
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    fetch(Source(url=server.url, file="f", sha256=SHA256), tmp_path, "webshop")
    assert server.asked == [None]  # an existing file is not downloaded again


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_resumes(server: Server, tmp_path: Path, ranges: bool) -> None:
    source = Source(url=server.url, file="f", sha256=SHA256)
    server.cut_at, server.ranges = 5_000_000, ranges
    with pytest.raises(TaskDataError, match=r"run the command again to resume, or put f into"):
        fetch(source, tmp_path, "webshop")
    assert [p.name for p in tmp_path.iterdir()] == ["f.part"]
    begun = (tmp_path / "f.part").stat().st_size
    assert 0 < begun <= 5_000_000
    assert fetch(source, tmp_path, "webshop").read_bytes() == BODY
    assert server.asked == [None, f"bytes={begun}-"]


def test_a_download_that_was_killed_at_its_very_end_is_whole(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "f.part").write_bytes(BODY)
    path = fetch(Source(url=server.url, file="f", sha256=SHA256), tmp_path, "webshop")
    assert path.read_bytes() == BODY


@pytest.mark.parametrize("heeds_if_range", [True, False])
@pytest.mark.parametrize("etags", [('"1"', '"2"'), (None, None), ('W/"1"', 'W/"1"')])
def test_a_changed_file_is_not_mixed_with_an_earlier_part(
    server: Server, tmp_path: Path, etags: tuple[str | None, str | None], heeds_if_range: bool
) -> None:
    source = Source(url=server.url, file="f")
    server.etag, server.cut_at, server.heeds_if_range = etags[0], 5_000_000, heeds_if_range
    with pytest.raises(TaskDataError, match="run the command again"):
        fetch(source, tmp_path, "webshop")
    assert 0 < (tmp_path / "f.part").stat().st_size <= 5_000_000
    server.etag, server.body = etags[1], BODY[::-1]
    assert fetch(source, tmp_path, "webshop").read_bytes() == BODY[::-1]
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_file_without_a_checksum_resumes_if_it_is_the_same_version(
    server: Server, tmp_path: Path
) -> None:
    source = Source(url=server.url, file="f")
    server.etag, server.cut_at = '"1"', 5_000_000
    with pytest.raises(TaskDataError, match="run the command again"):
        fetch(source, tmp_path, "webshop")
    begun = (tmp_path / "f.part").stat().st_size
    assert fetch(source, tmp_path, "webshop").read_bytes() == BODY
    assert server.asked == [None, f"bytes={begun}-"]


def test_a_part_that_is_longer_than_the_file_is_not_accepted(
    server: Server, tmp_path: Path
) -> None:
    server.etag, server.heeds_if_range = '"1"', False
    (tmp_path / "f.part").write_bytes(BODY + b"of an older version")
    (tmp_path / "f.etag").write_text('"1"')
    path = fetch(Source(url=server.url, file="f"), tmp_path, "webshop")
    assert path.read_bytes() == BODY


def test_a_web_page_is_not_accepted_as_the_file(server: Server, tmp_path: Path) -> None:
    source = Source(url=server.url, file="f")
    server.kind, server.body = "text/html; charset=utf-8", b"<html>Please log in</html>"
    with pytest.raises(TaskDataError, match="sent a web page instead of the file; run"):
        fetch(source, tmp_path, "webshop")
    server.kind, server.body = "application/zip", BODY
    assert fetch(source, tmp_path, "webshop").read_bytes() == BODY


def test_a_download_that_cannot_be_used_says_which_folder_to_delete(
    server: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(source: Path, out: Path, *, skip_invalid: bool) -> Prepared:
        raise TaskDataError(f"{source}: nothing usable")

    folder = home / "data" / "webshop.download"
    for sha256, more in (
        (None, rf"; if the download is at fault, delete {folder} and run the command again$"),
        (SHA256, "$"),  # a file with the right hash is not at fault
    ):
        sources = (Source(url=server.url, file="f", sha256=sha256),)
        monkeypatch.setitem(DATA, "webshop", TaskData(sources, prepare))
        with pytest.raises(TaskDataError, match=f"nothing usable{more}"):
            download("webshop")
        assert (folder / "f").exists()


def test_two_downloads_of_one_task_at_a_time_are_refused(
    toy: str, server: Server, home: Path
) -> None:
    folder = home / "data" / f"{toy}.download"
    folder.mkdir(parents=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(TaskDataError, match=r"download: another process is downloading"):
            download(toy)
    assert server.asked == []
    download(toy)


def test_nothing_is_downloaded_if_the_folder_is_taken(toy: str, server: Server, home: Path) -> None:
    data_folder(toy).mkdir(parents=True)
    (data_folder(toy) / "notes.txt").write_text("of somebody")
    with pytest.raises(TaskDataError, match="is already installed; remove it to install it again"):
        download(toy)
    assert (server.asked, [p.name for p in (home / "data").iterdir()]) == ([], [toy])
    (data_folder(toy) / "notes.txt").unlink()
    assert download(toy)["counts"] == {"train": 3}  # an empty folder may be used
    link = home / "data" / "mine"
    data_folder(toy).rename(home / "elsewhere")
    link.mkdir()
    data_folder(toy).symlink_to(link)
    with pytest.raises(TaskDataError, match="is already installed"):  # no place to install
        download(toy)


def test_a_wrong_checksum_is_an_error_and_nothing_is_kept(server: Server, tmp_path: Path) -> None:
    source = Source(url=server.url, file="f", sha256="0" * 64)
    with pytest.raises(
        TaskDataError, match=f"wrong checksum, expected sha256 0{{64}}, got {SHA256}"
    ):
        fetch(source, tmp_path, "webshop")
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_source_says_how_to_install_from_disk(
    server: Server, tmp_path: Path
) -> None:
    server.status = 403
    source = Source(url=server.url, file="f.zip")
    with pytest.raises(TaskDataError, match=r"403.*put f.zip into a folder.*webshop --from FOLDER"):
        fetch(source, tmp_path, "webshop")
    server.close()
    with pytest.raises(TaskDataError, match=r"file.bin: .*--from FOLDER"):
        fetch(source, tmp_path, "webshop")


def test_a_task_is_downloaded_with_a_manifest_and_without_leftovers(toy: str, home: Path) -> None:
    assert manifest_of(toy) is None
    manifest = download(toy)
    assert manifest == manifest_of(toy) == {
        "task": "webshop", "counts": {"train": 3}, "skipped": {}, "read": {"file.bin": SHA256},
    }  # fmt: skip
    assert (data_folder(toy) / "size.json").read_text() == str(len(BODY))
    assert [p.name for p in (home / "data").iterdir()] == ["webshop"]


def test_files_on_disk_are_taken_from_any_depth(toy: str, home: Path) -> None:
    (home / "mine" / "deep").mkdir(parents=True)
    (home / "mine" / "deep" / "a.bin").write_bytes(b"abc")
    manifest = install(toy, home / "mine", skip_invalid=True)
    assert manifest["read"] == {"deep/a.bin": hashlib.sha256(b"abc").hexdigest()}
    assert manifest["skipped"] == {"odd": 1}
    with pytest.raises(TaskDataError, match="is already installed; remove it to install it again"):
        install(toy, home / "mine")


def test_nothing_half_written_stays(toy: str, home: Path) -> None:
    (home / "empty").mkdir()
    with pytest.raises(TaskDataError, match=r"no \.bin file below it"):
        install(toy, home / "empty")
    assert list((home / "data").iterdir()) == []
    with pytest.raises(TaskDataError, match="no such folder"):
        install(toy, home / "nowhere")


def test_the_command_says_what_it_installed(
    toy: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "mine").mkdir()
    (home / "mine" / "a.bin").write_bytes(b"abc")
    main(["download", toy, "--from", str(home / "mine"), "--skip-invalid"])
    assert capsys.readouterr().out.splitlines() == [
        "left out 1: odd",
        f"{data_folder(toy)}: 3 train",
    ]
    main(["download", toy])
    assert capsys.readouterr().out.splitlines()[0] == f"{data_folder(toy)}: already installed"
    main(["tasks"])
    lines = capsys.readouterr().out.splitlines()
    assert f"webshop           ready: 3 train ({data_folder(toy)})" in lines
    assert "scienceworld      ready, needs no data" in lines


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["download", "webshap"], "unknown task 'webshap'; did you mean 'webshop'?"),
        (["download", "scienceworld"], "scienceworld: needs no data; it is ready to use"),
        (["tasks", "webshap"], "unknown task 'webshap'; did you mean 'webshop'?"),
    ],
)
def test_wrong_names_are_one_line(
    args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(args)
    assert said in capsys.readouterr().err


def test_missing_data_says_how_to_download_it() -> None:
    with pytest.raises(TaskDataError, match="the data of webshop is missing; run: stepagent"):
        required("webshop", "items.json")


def test_records_come_from_lists_and_lines_compressed_or_not(tmp_path: Path) -> None:
    records = [{"a": 1}, {"b": "ü"}]
    lines = "\n".join(json.dumps(record) for record in records) + "\n\n"
    (tmp_path / "l.jsonl").write_text(lines)
    (tmp_path / "l.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "l.json").write_text(json.dumps(records))
    for name in ("l.jsonl", "l.jsonl.gz", "l.json"):
        assert [record for _, record in read_records(tmp_path / name)] == records
    assert [place for place, _ in read_records(tmp_path / "l.jsonl")] == [
        f"{tmp_path}/l.jsonl:1",
        f"{tmp_path}/l.jsonl:2",
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": ', "a.jsonl:2: invalid JSON (incomplete file?):"),
        ("a.json", b'[{"a": 1},\n {"a', "a.json:2: invalid JSON (incomplete file?):"),
        (
            "a.json",
            b"[" * 100_000,
            "a.json:1: invalid JSON (incomplete file?): maximum recursion",
        ),
        (
            "a.jsonl",
            b'{}\n{"a":' + b"[" * 100_000,
            "a.jsonl:2: invalid JSON (incomplete file?): max",
        ),
        (
            "a.jsonl",
            b"9" * 5000,
            "a.jsonl:1: invalid JSON (incomplete file?): Exceeds the limit",
        ),
        ("a.json", b"[1]", "a.json: record 1: expected an object, got int"),
        ("a.jsonl", b"7\n", "a.jsonl:1: expected an object, got int"),
        (
            "a.json.gz",
            gzip.compress(b"[]" * 999)[:30],
            "a.json.gz: cannot be read (incomplete file?):",
        ),
        ("a.json.gz", b"[]", "a.json.gz: cannot be read (incomplete file?):"),
        ("a.json", b"\xff\xfe", "a.json: cannot be read (incomplete file?):"),
    ],
)
def test_damaged_files_are_one_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskDataError) as caught:
        list(read_records(tmp_path / name))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_damaged_manifest_are_one_line(toy: str, tmp_path: Path) -> None:
    with pytest.raises(TaskDataError, match=r"no.json: cannot be read.*No such file"):
        read_json(tmp_path / "no.json")
    data_folder(toy).mkdir(parents=True)
    for damaged in (
        "{",
        "[" * 100_000,
        "[]",
        "{}",
        '{"counts": {}}',
        '{"counts": 1, "skipped": {}}',
    ):
        (data_folder(toy) / "manifest.json").write_text(damaged)
        with pytest.raises(TaskDataError, match="damaged; remove the folder and download webshop"):
            manifest_of(toy)


def test_a_broken_connection_resumes_where_it_broke(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "TRIES", 2)
    server.cut_at = 5_000_000
    path = fetch(Source(url=server.url, file="f", sha256=SHA256), tmp_path, "webshop")
    assert path.read_bytes() == BODY
    assert [asked is None for asked in server.asked] == [True, False]
    server.status = 403
    with pytest.raises(TaskDataError, match="403"):
        fetch(Source(url=server.url, file="g"), tmp_path, "webshop")
    assert len(server.asked) == 3  # a refused request is not repeated


def test_a_server_that_sends_almost_nothing_times_out(
    tmp_path: Path,
) -> None:
    def drip(player: socket.socket) -> None:
        with player, suppress(OSError):
            player.recv(65536)
            player.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")
            for _ in range(100):
                player.sendall(b"x")
                time.sleep(0.05)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=lambda: drip(listener.accept()[0]), daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/f"
        begun = time.monotonic()
        with pytest.raises(TaskDataError, match="run the command again to resume"):
            fetch(Source(url=url, file="f"), tmp_path, "webshop", timeout_seconds=0.5)
        assert time.monotonic() - begun < 4
    assert 0 < (tmp_path / "f.part").stat().st_size < 100


def test_a_file_beyond_the_limit_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "MAX_BYTES", 1_000_000)
    with pytest.raises(TaskDataError, match="more than 1,000,000 bytes; expected fewer"):
        fetch(Source(url=server.url, file="f"), tmp_path, "webshop")


KILLED = """
import os, signal, sys
from pathlib import Path
from stepagent.tasks.data.sources import Prepared, TaskData
from stepagent.tasks.install import DATA, install

def prepare(source, out, *, skip_invalid):
    (out / "half").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)

DATA["webshop"] = TaskData((), prepare)
install("webshop", Path(sys.argv[1]))
"""


def test_leftovers_of_a_killed_download_are_removed_at_the_next_start(toy: str, home: Path) -> None:
    (home / "mine").mkdir()
    (home / "mine" / "a.bin").write_bytes(b"abc")
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", KILLED, str(home / "mine")], check=False)
        assert done.returncode == -SIGKILL
        left = sorted(path.name for path in (home / "data").iterdir())
        assert left == ["webshop.download", "webshop.unfinished"]
    install(toy, home / "mine")
    assert [path.name for path in (home / "data").iterdir()] == ["webshop"]


def test_leftovers_of_a_download_killed_after_installing_are_removed(
    toy: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    download(toy)
    (home / "data" / f"{toy}.download").mkdir()
    (home / "data" / f"{toy}.download" / "file.bin").write_bytes(BODY)
    main(["download", toy])
    assert "already installed" in capsys.readouterr().out
    assert [path.name for path in (home / "data").iterdir()] == [toy]
