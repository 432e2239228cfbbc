"""The archive from a local server that breaks off, forgets and lies; and hostile tar files."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import io
import json
import logging
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import pytest

from lra.tasks import DataError, archive, download
from lra.tasks.listops import ListOps
from lra.tasks.pathfinder import Pathfinder
from lra.tasks.retrieval import Retrieval

ROOT = Path(__file__).resolve().parents[1]
INNER = archive.INNER
LISTOPS = [f"{INNER}/listops-1000/basic_{part}.tsv" for part in ("train", "val", "test")]
PAIRS = [f"{INNER}/tsv_data/new_aan_pairs.{part}.tsv" for part in ("train", "eval", "test")]
HARD = f"{INNER}/pathfinder32/curv_contour_length_14"
PICTURES = [f"{HARD}/imgs/0/sample_0.png", f"{HARD}/metadata/0.npy"]


def plain(name: str, content: bytes = b"") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    content = content or f"content of {name}".encode()
    member.size = len(content)
    return member, content


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


def packed(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


def whole() -> bytes:
    """Return an archive with the files that tasks read, and many others."""
    noise = hashlib.shake_256(b"noise").digest(50_000)
    others = [
        "lra_release/listops-1000/basic_train.tsv",
        f"{INNER}/listops-1000/basic_extra.tsv",
        f"{INNER}/listops-1000/deeper/basic_train.tsv",
        f"{INNER}/tsv_data/new_aan_pairs.train.tsv.bak",
        f"{HARD}/imgs/0/.sample_0.png.swp",
        f"{INNER}/pathfinder32/curv_baseline/imgs/0/sample_0.png",
    ]
    names = [*LISTOPS, *PAIRS, *PICTURES, *others]
    return packed(plain(f"{INNER}/noise", noise), *map(plain, names))


@dataclass
class Server:
    """A server of one file.

    Args:
        content: The file.
        etag: Its ETag.
        ranges: Whether ranges are honoured.
        cuts: For each of the next answers, the number of bytes after which it breaks off.
        errors: The statuses of the next answers to GET.
        requests: `(method, Range, If-Range)` of every request received.
    """

    content: bytes
    etag: str = '"one"'
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    errors: list[int] = field(default_factory=list)
    requests: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    url: str = ""

    @property
    def requested_ranges(self) -> list[str | None]:
        """The ranges requested by GET."""
        return [wanted for method, wanted, _ in self.requests if method == "GET"]


class Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, state: Server, *arguments: object) -> None:
        self.state = state
        super().__init__(*arguments)  # type: ignore[arg-type]

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def answer(self, body: bool) -> None:
        state, wanted = self.state, self.headers["Range"]
        state.requests.append((self.command, wanted, self.headers["If-Range"]))
        if body and state.errors:
            self.send_error(state.errors.pop(0))
            return
        start = 0
        honoured = state.ranges and self.headers["If-Range"] in (None, state.etag)
        if wanted and honoured:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        size = len(state.content)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - start))
        self.send_header("ETag", state.etag)
        self.end_headers()
        if body:
            end = start + state.cuts.pop(0) if state.cuts else size
            self.wfile.write(state.content[start:end])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setattr(download, "TIMEOUT", 5.0)
    monkeypatch.setattr(download, "CHUNK", 1_000)
    state = Server(whole())
    with http.server.HTTPServer(("127.0.0.1", 0), functools.partial(Handler, state)) as http_server:
        state.url = f"http://127.0.0.1:{http_server.server_port}/lra_release.gz"
        thread = threading.Thread(target=http_server.serve_forever, args=(0.01,))
        thread.start()
        yield state
        http_server.shutdown()
        thread.join()


def files(folder: Path) -> set[str]:
    """Return the files in folders below a folder: those unpacked, and any that look like them."""
    names = (str(f.relative_to(folder)) for f in folder.rglob("*") if not f.is_dir())
    return {name for name in names if "/" in name}


def test_only_files_that_tasks_read_are_unpacked_to_where_they_look(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        archive.fetch(["listops", "retrieval", "image"], tmp_path, server.url)
    assert files(tmp_path) == {*LISTOPS, *PAIRS}
    assert (tmp_path / LISTOPS[0]).read_text() == f"content of {LISTOPS[0]}"
    assert ListOps().locate(tmp_path).files == tuple(tmp_path / name for name in LISTOPS)
    assert Retrieval().locate(tmp_path).files == tuple(tmp_path / name for name in PAIRS)
    # The size is reported before anything is fetched, the digest at the end.
    assert "0.0 GB are here" in caplog.messages[0] and "10 GB more" in caplog.messages[0]
    assert hashlib.sha256(server.content).hexdigest() in caplog.messages[-1]


def test_files_already_present_are_not_fetched_again(tmp_path: Path, server: Server) -> None:
    archive.fetch(["listops"], tmp_path, server.url)
    num_requests = len(server.requests)
    archive.fetch(["listops"], tmp_path, server.url)
    # The archive is still there, so another part needs no connection either.
    archive.fetch(["listops", "pathfinder"], tmp_path, server.url)
    assert len(server.requests) == num_requests
    assert files(tmp_path) == {*LISTOPS, *PICTURES}
    assert Pathfinder().locate(tmp_path).files == (tmp_path / PICTURES[1],)


def test_tasks_outside_the_archive_fetch_nothing(tmp_path: Path, server: Server) -> None:
    archive.fetch(["image", "text"], tmp_path, server.url)
    assert not server.requests


def test_an_interrupted_download_resumes_where_it_stopped(tmp_path: Path, server: Server) -> None:
    server.cuts = [20_000, 7_001]
    archive.fetch(["listops"], tmp_path, server.url)
    assert server.requested_ranges == [None, "bytes=20000-", "bytes=27001-"]
    assert (tmp_path / "lra_release.gz").read_bytes() == server.content
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob("*.json"))


def test_a_later_run_resumes_the_download_of_an_earlier_one(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    server.cuts = [30_000, 0, 0]
    with pytest.raises(DataError, match=r"at 30,000 of [\d,]+ bytes, 2 times; run it again"):
        archive.fetch(["listops"], tmp_path, server.url)
    assert not files(tmp_path)
    server.requests.clear()
    archive.fetch(["listops"], tmp_path, server.url)
    assert server.requests[1] == ("GET", "bytes=30000-", '"one"')
    assert (tmp_path / "lra_release.gz").read_bytes() == server.content


def test_a_server_that_ignores_ranges_sends_the_whole_file_again(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.ranges, server.cuts = False, [20_000]
    archive.fetch(["listops"], tmp_path, server.url)
    assert "cannot continue" in caplog.text
    assert (tmp_path / "lra_release.gz").read_bytes() == server.content


def test_a_server_that_makes_no_progress_is_given_up_on(tmp_path: Path, server: Server) -> None:
    server.ranges, server.cuts = False, [20_000] * 20
    with pytest.raises(DataError, match=f"{download.ATTEMPTS} times"):
        archive.fetch(["listops"], tmp_path, server.url)
    assert len(server.requested_ranges) == 1 + download.ATTEMPTS


def test_a_changed_file_on_the_server_is_not_appended_to_the_old_one(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    partial = tmp_path / "lra_release.gz.partial"
    partial.write_bytes(b"old" * 1_000)
    old = download.Remote(server.url, len(server.content), '"zero"')
    (tmp_path / "lra_release.gz.json").write_text(json.dumps(old.__dict__))
    archive.fetch(["listops"], tmp_path, server.url)
    assert server.requested_ranges == [None] and "has changed since" in caplog.text
    assert (tmp_path / "lra_release.gz").read_bytes() == server.content


def test_a_partial_file_of_unknown_origin_is_not_resumed(tmp_path: Path, server: Server) -> None:
    (tmp_path / "lra_release.gz.partial").write_bytes(server.content[:9] + b"x")
    archive.fetch(["listops"], tmp_path, server.url)
    assert server.requested_ranges == [None]


@pytest.mark.parametrize("what", ["etag", "content"])
def test_a_file_that_changes_while_it_is_fetched_is_an_error(
    tmp_path: Path, server: Server, what: str
) -> None:
    remote = download.ask(server.url)
    if what == "etag":
        server.etag = '"two"'
    else:
        server.content += b"more"
    with pytest.raises(DataError, match="changed while it was fetched"):
        download.download(remote, tmp_path / "file")


def test_a_range_other_than_the_requested_one_is_an_error(tmp_path: Path, server: Server) -> None:
    shorter = download.Remote(server.url, len(server.content) - 9, server.etag)
    (tmp_path / "file.partial").write_bytes(server.content[:100])
    (tmp_path / "file.json").write_text(json.dumps(shorter.__dict__))
    with pytest.raises(DataError, match="the server sends 'bytes 100-"):
        download.download(shorter, tmp_path / "file")


def test_a_busy_server_is_retried_and_a_refusing_one_is_not(tmp_path: Path, server: Server) -> None:
    server.errors = [503, 429]
    archive.fetch(["listops"], tmp_path / "busy", server.url)
    assert len(server.requested_ranges) == 3
    server.errors = [403]
    with pytest.raises(DataError, match=r"lra_release\.gz: the server answered 403 Forbidden"):
        archive.fetch(["listops"], tmp_path / "refused", server.url)
    assert len(server.requested_ranges) == 4


def test_an_unreachable_server_is_reported(tmp_path: Path, server: Server) -> None:
    # Port 9 of this machine: nobody listens there.
    with pytest.raises(DataError, match="cannot be reached from here"):
        archive.fetch(["listops"], tmp_path, "http://127.0.0.1:9/lra_release.gz")


def test_too_little_disk_space_is_reported_before_anything_is_fetched(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = archive.PARTS["retrieval"].unpacked + len(server.content) - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    with pytest.raises(DataError, match=r"9\.0 GB are free, but some 9\.0 GB are needed"):
        archive.fetch(["retrieval"], tmp_path, server.url)
    assert server.requested_ranges == []
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free + 1))
    archive.fetch(["retrieval"], tmp_path, server.url)


def test_a_full_disk_is_reported_and_leaves_nothing_that_looks_complete(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        with pytest.raises(DataError, match="the disk is full"):
            archive.fetch(["listops"], tmp_path, server.url)
    assert not files(tmp_path)
    archive.fetch(["listops"], tmp_path, server.url)
    assert files(tmp_path) == set(LISTOPS)


def unpack(folder: Path, content: bytes, task: str = "listops") -> None:
    """Unpack an archive that is already in the folder."""
    (folder / "lra_release.gz").write_bytes(content)
    archive.fetch([task], folder, "http://127.0.0.1:9/never-asked")


HOSTILE = {
    "parent": (plain("../outside.tsv"), "points outside"),
    "parent within": (plain(f"{INNER}/listops-1000/../../../../outside.tsv"), "points outside"),
    "absolute": (plain("/tmp/outside.tsv"), "points outside"),
    "symlink": (special(LISTOPS[0], tarfile.SYMTYPE, "/etc/passwd"), "neither a plain"),
    "hard link": (special(LISTOPS[0], tarfile.LNKTYPE, "../outside.tsv"), "neither a plain"),
    "character device": (special(LISTOPS[0], tarfile.CHRTYPE), "neither a plain"),
    "block device": (special(LISTOPS[0], tarfile.BLKTYPE), "neither a plain"),
    "pipe": (special(LISTOPS[0], tarfile.FIFOTYPE), "neither a plain"),
    "linked folder": (special(f"{INNER}/listops-1000", tarfile.SYMTYPE, "/tmp"), "neither a plain"),
    "linked top": (special("lra_release", tarfile.SYMTYPE, "/tmp"), "neither a plain"),
    "file for folder": (plain(INNER), "neither a plain"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_member_that_could_write_elsewhere_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    (member, content), reason = HOSTILE[kind]
    folder = tmp_path / "data"
    folder.mkdir()
    with pytest.raises(DataError, match=f"member {re.escape(repr(member.name))} .*{reason}"):
        unpack(folder, packed((member, content), *map(plain, LISTOPS)))
    assert not files(folder) and [file.name for file in tmp_path.iterdir()] == ["data"]


def test_links_that_no_task_reads_are_never_created(tmp_path: Path) -> None:
    link = special(f"{INNER}/elsewhere", tarfile.SYMTYPE, "/etc")
    unpack(tmp_path, packed(link, *map(plain, LISTOPS)))
    assert files(tmp_path) == set(LISTOPS)


def test_a_file_that_is_in_the_archive_twice_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"basic_val\.tsv' is in it twice"):
        unpack(tmp_path, packed(*map(plain, [*LISTOPS, LISTOPS[1]])))


def test_an_archive_without_the_requested_part_lists_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="files of retrieval are not in .*lra_release/listops-1000"):
        unpack(tmp_path, packed(*map(plain, [*LISTOPS, *PAIRS[:2]])), "retrieval")
    assert not files(tmp_path)


def test_a_leading_dot_in_every_name_changes_nothing(tmp_path: Path) -> None:
    dots = [special(".", tarfile.DIRTYPE), special(f"./{INNER}/", tarfile.DIRTYPE)]
    unpack(tmp_path, packed(*dots, *(plain(f"./{name}") for name in LISTOPS)))
    assert files(tmp_path) == set(LISTOPS)


def flipped(content: bytes) -> bytes:
    """Damage the header of the last member, and pack it so that gzip sees nothing wrong."""
    tar = bytearray(gzip.decompress(content))
    tar[tar.rindex(LISTOPS[2].encode(), 0, tar.rindex(b"content of"))] ^= 1
    return gzip.compress(tar)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda content: content[: len(content) // 2],
    "cut in the checksum": lambda content: content[:-2],
    "no gzip": lambda content: b"<html>Sorry</html>",
    "not a tar": lambda content: gzip.compress(b"hello" * 1_000),
    "empty": lambda content: b"",
    "damaged": lambda content: content[:-8] + bytes([content[-8] ^ 1]) + content[-7:],
    "damaged within": flipped,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_archive_is_reported_and_leaves_nothing_that_looks_complete(
    tmp_path: Path, kind: str
) -> None:
    with pytest.raises(DataError, match=r"lra_release\.gz: truncated, damaged or not a tar"):
        unpack(tmp_path, DAMAGE[kind](packed(*map(plain, LISTOPS))))
    assert not files(tmp_path)


def test_killed_unpacking_leaves_nothing_that_looks_complete(tmp_path: Path) -> None:
    (tmp_path / "lra_release.gz").write_bytes(whole())
    code = f"""
        import os, shutil
        from pathlib import Path
        from lra.tasks import archive
        copy, done = shutil.copyfileobj, []
        def killed(*arguments):
            copy(*arguments)
            done.append(1)
            if len(done) == 2:
                os.kill(os.getpid(), 9)
        shutil.copyfileobj = killed
        archive.fetch(["listops"], Path({str(tmp_path)!r}))
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT)
    assert killed.returncode == -9
    assert files(tmp_path) and ListOps().locate(tmp_path).kind == "generated"
    assert not (tmp_path / INNER / "listops-1000").exists()
    archive.fetch(["listops"], tmp_path, "http://127.0.0.1:9/never-asked")
    assert files(tmp_path) == set(LISTOPS)


def test_a_folder_with_missing_files_is_not_taken_for_the_part(tmp_path: Path) -> None:
    (tmp_path / LISTOPS[0]).parent.mkdir(parents=True)
    (tmp_path / LISTOPS[0]).touch()
    with pytest.raises(DataError, match="listops-1000 lacks files of listops: move it away"):
        archive.fetch(["listops"], tmp_path, "http://127.0.0.1:9/never-asked")


def test_a_plain_tar_is_read(tmp_path: Path) -> None:
    unpack(tmp_path, gzip.decompress(packed(*map(plain, LISTOPS))))
    assert files(tmp_path) == set(LISTOPS)


@pytest.mark.parametrize("gzipped", [True, False])
def test_an_archive_that_changes_while_it_is_unpacked_is_noticed(
    tmp_path: Path,
    gzipped: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    content, write = packed(*map(plain, LISTOPS)), archive._write

    def changing(*arguments: object) -> None:
        write(*arguments)  # type: ignore[arg-type]
        file = tmp_path / "lra_release.gz"
        # As another process might: the same bytes, written again.
        file.write_bytes(file.read_bytes())

    monkeypatch.setattr(archive, "_write", changing)
    with pytest.raises(DataError, match=r"lra_release.gz: changed while it was unpacked"):
        unpack(tmp_path, content if gzipped else gzip.decompress(content))
    assert not files(tmp_path)
    # A plain tar has no checksum that would reveal it.
    assert ("is a plain tar, in which nothing reveals" in caplog.text) is not gzipped


def test_the_output_of_gunzip_is_reported_before_anything_is_fetched(
    tmp_path: Path, server: Server
) -> None:
    tar = gzip.decompress(packed(*map(plain, LISTOPS)))
    (tmp_path / "lra_release").write_bytes(tar)
    with pytest.raises(DataError, match=r"lra_release is a file.* gunzip .*a plain tar is read"):
        archive.fetch(["listops"], tmp_path, server.url)
    assert not server.requests
    # What the message suggests.
    (tmp_path / "lra_release").rename(tmp_path / "lra_release.gz")
    archive.fetch(["listops"], tmp_path, server.url)
    assert files(tmp_path) == set(LISTOPS) and not server.requests


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return the header of a member that declares the given size."""
    member = tarfile.TarInfo(name[:100])
    member.type = kind
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\x80" + size.to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def old_sparse(size: int) -> bytes:
    block = bytearray(header(LISTOPS[0], 512, tarfile.GNUTYPE_SPARSE))
    # One piece of 512 bytes at offset 0, and the size of the whole.
    block[386:398], block[398:410] = b"00000000000\0", b"00000001000\0"
    block[483:495] = b"\x80" + size.to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + b"x" * 512


def pax(**values: str) -> bytes:
    member, content = plain(LISTOPS[0])
    member.pax_headers = {key.replace("_", "."): value for key, value in values.items()}
    data = member.tobuf(tarfile.PAX_FORMAT) + content
    return data + b"\0" * (-len(data) % 512)


CLAIMS: dict[str, tuple[bytes, str]] = {
    "a sparse member of 93 GB": (old_sparse(93 * 10**9), "is sparse"),
    "a sparse member of pax": (
        pax(GNU_sparse_major="1", GNU_sparse_minor="0", GNU_sparse_realsize="93000000000"),
        "is sparse",
    ),
    "a sparse map of pax": (
        pax(GNU_sparse_map="0,512", GNU_sparse_size="93000000000"),
        "is sparse",
    ),
    "a size of 2^70": (header(LISTOPS[0], 2**70), "claims 1,180,591,620,717,411,303,424 bytes"),
    "a size of 2^70 that nobody reads": (header("x", 2**70), "claims 1,180,591,620,717,411"),
    "a size of 2^70 by pax": (pax(size=str(2**70)), "claims 1,180,591,620,717,411,303,424 bytes"),
    "a size below zero by pax": (pax(size="-512"), "claims -512 bytes"),
    "a long name of 4 GB": (header("x", 2**32, tarfile.GNUTYPE_LONGNAME), "claims 4,294,967,296"),
    "a long link of 4 GB": (header("x", 2**32, tarfile.GNUTYPE_LONGLINK), "claims 4,294,967,296"),
    "a pax header of 4 GB": (header("x", 2**32, tarfile.XHDTYPE), "claims 4,294,967,296 bytes"),
    "a global pax header of 4 GB": (header("x", 2**32, tarfile.XGLTYPE), "claims 4,294,967,296"),
    "ten times the part": (header(LISTOPS[0], 10**10), "listops-1000 claims 10,000,000,000 bytes"),
    "a name of 300 bytes": (
        gzip.decompress(packed(plain(f"{INNER}/listops-1000/{'a' * 300}"))),
        "has a name longer than 255 bytes",
    ),
}


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("pack", [gzip.compress, bytes], ids=["gzip", "plain"])
def test_a_member_is_refused_for_what_it_declares(
    tmp_path: Path, claim: str, pack: Callable[[bytes], bytes]
) -> None:
    content, reason = CLAIMS[claim]
    tracemalloc.start()
    with pytest.raises(DataError, match=rf"lra_release\.gz: .*{re.escape(reason)}"):
        unpack(tmp_path, pack(content + bytes(1_024)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not files(tmp_path) and peak < 2**24


def test_an_archive_that_unpacks_to_more_than_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_BYTES", 10**6)
    zeros = gzip.compress(bytes(2 * 10**6))
    many = packed(*(plain(f"noise/{index}", bytes(1_000)) for index in range(1_000)))
    for content in (zeros, many):
        with pytest.raises(DataError, match="more than 1,000,000 bytes unpacked; not unpacked"):
            unpack(tmp_path, content)


def test_a_file_that_changes_midway_is_caught_by_its_checksum_at_the_latest(
    tmp_path: Path, server: Server
) -> None:
    # Another archive of the same length, under the same ETag, from the second answer on.
    first, half = server.content, len(server.content) // 2
    server.cuts = [half]
    answer = Handler.answer

    def other(self: Handler, body: bool) -> None:
        answer(self, body)
        if body:
            server.content = first[:half] + bytes(b ^ 1 for b in first[half:])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Handler, "answer", other)
        with pytest.raises(DataError, match="damaged"):
            archive.fetch(["listops"], tmp_path, server.url)
    assert not files(tmp_path)


@pytest.mark.parametrize("lie", [1_000, -1_000])
def test_a_server_that_lies_about_the_length_causes_an_error(
    tmp_path: Path, server: Server, lie: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    send = Handler.send_header

    def lying(self: Handler, key: str, value: str) -> None:
        send(self, key, str(int(value) + lie) if key == "Content-Length" else value)

    monkeypatch.setattr(Handler, "send_header", lying)
    with pytest.raises(DataError):
        archive.fetch(["listops"], tmp_path, server.url)
    assert not files(tmp_path)


@pytest.mark.slow
def test_a_server_that_sends_a_trickle_is_given_up_on(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    monkeypatch.setattr(download, "PATIENCE", 0.1)
    monkeypatch.setattr(download, "MIN_RATE", 10**6)

    class Slow:
        def __init__(self, file: BinaryIO) -> None:
            self.file = file

        def write(self, data: bytes) -> int:
            for index in range(len(data)):
                self.file.write(data[index : index + 1])
                time.sleep(0.02)
            return len(data)

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

    answer = Handler.answer

    def drip(self: Handler, body: bool) -> None:
        if body:
            self.wfile = Slow(self.wfile)  # type: ignore[assignment]
            self._headers_buffer: list[bytes] = []
        with contextlib.suppress(OSError):
            answer(self, body)

    monkeypatch.setattr(Handler, "answer", drip)
    remote = download.ask(server.url)
    with pytest.raises(DataError, match="the server sends next to nothing at .*, 2 times"):
        download.download(remote, tmp_path / "file")


def test_a_header_that_trickles_in_is_not_an_answer(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    slow = threading.Event()

    def drip(self: Handler, body: bool) -> None:
        with contextlib.suppress(OSError):
            for letter in b"HTTP/1.0 200 OK\r\nX: " + b"x" * 20:
                self.wfile.write(bytes([letter]))
                self.wfile.flush()
                slow.wait(0.05)

    monkeypatch.setattr(Handler, "answer", drip)
    with pytest.raises(
        DataError, match="cannot be reached from here: no complete answer within 0 s"
    ):
        download.ask(server.url)
    slow.set()


def test_a_copy_without_pictures_is_not_taken_for_the_published_one(tmp_path: Path) -> None:
    part = archive.PARTS["pathfinder"]
    (tmp_path / "metadata").mkdir()
    for number in range(2):
        (tmp_path / "metadata" / f"{number}.npy").touch()
    assert not part.is_in(tmp_path)
    (tmp_path / "imgs" / "0").mkdir(parents=True)
    (tmp_path / "imgs" / "0" / "sample_0.png").touch()
    assert part.is_in(tmp_path)
