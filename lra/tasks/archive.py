"""Fetch Long Range Arena's published archive, and unpack the parts that tasks read.

`lra_release.gz` is a gzipped tar of some 8 GB, 19 GB unpacked. It contains some folders twice; its
authors point to the inner ones (google-research/long-range-arena, issues 12 and 38). IMDb and
CIFAR-10 are not in it. An archive that is already in the folder is not fetched again.
"""

import gzip
import hashlib
import io
import logging
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lra.bar import progress_bar
from lra.tasks import DataError, Task
from lra.tasks.cache import naming_full_disk
from lra.tasks.download import CHUNK, arrived, ask, download
from lra.tasks.lock import held

log = logging.getLogger(__name__)

URL = "https://storage.googleapis.com/long-range-arena/lra_release.gz"
NAME = "lra_release.gz"
# Once unpacked, some folders are in both of these; the authors point to the inner one.
OUTER = "lra_release"
INNER = f"{OUTER}/lra_release"
# Maximum size of the whole archive unpacked, and of a member's header, such as a name or a list.
MAX_BYTES, MAX_HEADER = 2**36, 2**20
# A part that claims this many times its size does not belong to this archive.
MAX_TIMES = 8
MAX_NAME = 255
GZIP_MAGIC = b"\x1f\x8b"
EXPRESSIONS = tuple(rf"basic_{name}\.tsv" for name in ("train", "val", "test"))
PAIRS = tuple(rf"new_aan_pairs\.{name}\.tsv" for name in ("train", "eval", "test"))
PICTURES = (r"imgs/\d+/[\w-]+\.png", r"metadata/\d+\.npy")


@dataclass(frozen=True)
class Part:
    """A folder of the archive that a task reads.

    Args:
        folder: Its place in the archive, and below the raw data once unpacked.
        patterns: Regular expressions of its files that are read. A folder without a file for each
            of them is not this part.
        unpacked: Upper estimate of its bytes on disk; small files fill blocks of 4 KiB.
    """

    folder: str
    patterns: tuple[str, ...]
    unpacked: int

    def is_in(self, folder: Path) -> bool:
        """Return whether a folder contains this part."""
        missing = set(self.patterns)
        # A folder of pictures has 200,000 files, so the search ends once each kind is found.
        for file in folder.rglob("*"):
            path = str(file.relative_to(folder))
            missing = {each for each in missing if not re.fullmatch(each, path, re.ASCII)}
            if not missing:
                return True
        return False

    def reads(self, path: Path | str) -> bool:
        """Return whether a path below the folder belongs to a file that is read."""
        return any(re.fullmatch(each, str(path), re.ASCII) for each in self.patterns)


def places(folder: str) -> tuple[str, str]:
    """Return where a folder of the archive may be once unpacked, the better place first."""
    return f"{INNER}/{folder}", f"{OUTER}/{folder}"


PARTS = {
    "listops": Part(f"{INNER}/listops-1000", EXPRESSIONS, 10**9),
    "retrieval": Part(f"{INNER}/tsv_data", PAIRS, 9 * 10**9),
    "pathfinder": Part(f"{INNER}/pathfinder32/curv_contour_length_14", PICTURES, 10**9),
    "pathx": Part(f"{INNER}/pathfinder128/curv_contour_length_14", PICTURES, 3 * 10**9),
}


def part_of(name: str, task: Task) -> str | None:
    """Return the part of the archive that a task with its options would read, or None.

    Args:
        name: The task's name, which is that of its part unless the task has a `part` of its own.
        task: The task.
    """
    # A user's own task, whose name has a dot, may call anything `source` or `part`.
    if "." in name or getattr(task, "source", None) == "generated":
        return None
    part: str | None = getattr(task, "part", name)
    return part if part in PARTS else None


def fetch(tasks: Iterable[str], data_dir: Path, url: str = URL) -> None:
    """Put the published files of tasks under a folder, where the tasks look for them.

    Args:
        tasks: Names of tasks; tasks without a part in the archive need nothing.
        data_dir: Folder of raw data; the archive itself stays there as `lra_release.gz`.
        url: Address of the archive.

    Raises:
        DataError: The archive cannot be fetched, is damaged or not what it should be, or the disk
            has too little space.
    """
    wanted = {name: PARTS[name] for name in tasks if name in PARTS}
    with naming_full_disk("data_dir", data_dir, "fetching the archive"):
        data_dir.mkdir(parents=True, exist_ok=True)
        with held(data_dir / "lra_release.lock", f"fetches {NAME}"):
            _fetch(wanted, data_dir, url)


def _fetch(wanted: Mapping[str, Part], data_dir: Path, url: str) -> None:
    missing = {}
    for name, part in wanted.items():
        folder = data_dir / part.folder
        _check_folders(data_dir, folder)
        if not folder.exists():
            missing[name] = part
        elif not part.is_in(folder):
            raise DataError(f"{folder} lacks files of {name}: move it away, then fetch again")
    if not missing:
        log.info("%s holds the published files of %s", data_dir, ", ".join(wanted) or "none")
        return
    file = data_dir / NAME
    room = sum(part.unpacked for part in missing.values())
    if not file.exists():
        remote = ask(url)
        have = arrived(remote, file)
        log.info(
            "%s: %.1f GB, of which %.1f GB are here; unpacked, %s will take some %.0f GB more",
            *(url, remote.size / 1e9, have / 1e9, ", ".join(missing), room / 1e9),
        )
        _check_room(data_dir, remote.size - have + room)
        download(remote, file)
    _check_room(data_dir, room)
    digest = unpack(file, data_dir, missing)
    log.info(
        "%s: sha256 %s (no official value is known to compare it with); the file is no longer"
        " needed once every task has its part",
        *(file, digest),
    )


def _check_folders(data_dir: Path, folder: Path) -> None:
    """Reject a file in place of a part's folder or one above it, such as `gunzip` leaves."""
    for place in (*reversed(folder.relative_to(data_dir).parents), folder.relative_to(data_dir)):
        if (data_dir / place).exists() and not (data_dir / place).is_dir():
            raise DataError(
                f"{data_dir / place} is a file, but should be a folder. If gunzip made it from"
                f" {NAME}, rename it to {data_dir / NAME}: a plain tar is read too"
            )


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"data_dir={folder}: {free / 1e9:.1f} GB are free, but some {needed / 1e9:.1f} GB are"
            " needed; free some space or choose another data_dir"
        )


def unpack(file: Path, data_dir: Path, parts: Mapping[str, Part]) -> str:
    """Unpack parts of an archive; folders get their names once the whole archive has been read.

    Args:
        file: The archive.
        data_dir: Folder below which the parts' folders are created; they must not exist yet.
        parts: Parts by task.

    Returns:
        The sha256 of the archive, 64 hex digits.

    Raises:
        DataError: The archive is damaged, lacks a part, or has a member that might be written
            elsewhere.
    """
    folders = {part: data_dir / part.folder for part in parts.values()}
    partial = {part: f.with_name(f"{f.name}.partial") for part, f in folders.items()}
    try:
        for folder in partial.values():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        before = _state(file)
        bar = progress_bar(None, file.name, before[0], unit="B", unit_scale=True)
        with open(file, "rb") as raw, bar:
            source = _Read(raw, bar)
            seen = _unpack(io.BufferedReader(source, CHUNK), file, partial)
        # A plain tar has no checksum that would reveal it.
        if _state(file) != before:
            raise DataError(f"{file}: changed while it was unpacked; run it again")
        for name, part in parts.items():
            if not part.is_in(partial[part]):
                raise DataError(
                    f"{file}: the files of {name} are not in its {part.folder}; it has"
                    f" {', '.join(sorted(seen)[:20])}"
                )
        for part, folder in partial.items():
            os.replace(folder, folders[part])
    finally:
        for folder in partial.values():
            shutil.rmtree(folder, ignore_errors=True)
    return source.digest.hexdigest()


def _state(file: Path) -> tuple[int, int, int]:
    """Return the size, modification time and identity of a file, which are cheap to compare."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


class _Read(io.RawIOBase):
    """A file that hashes what is read from it, and shows it on a progress bar."""

    def __init__(self, raw: BinaryIO, bar: Any) -> None:
        self._raw, self._bar = raw, bar
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._raw.read(len(buffer))
        buffer[: len(data)] = data
        self.digest.update(data)
        self._bar.update(len(data))
        return len(data)


class _Member(tarfile.TarInfo):
    """A member that may be rejected by its header, before anything is read for it."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        headers = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, *_PAX)
        self._check_size(MAX_HEADER if self.type in headers else MAX_BYTES)
        if self.type == tarfile.GNUTYPE_SPARSE:
            self._refuse_holes()
        return super()._proc_member(archive)  # type: ignore[misc]  # made to be overridden

    def _apply_pax_info(self, headers: Mapping[str, str], *rest: Any) -> None:
        if any(key.startswith("GNU.sparse") for key in headers):
            self._refuse_holes()
        super()._apply_pax_info(headers, *rest)  # type: ignore[misc]
        self._check_size(MAX_BYTES)

    def _proc_gnusparse_10(self, *rest: Any) -> None:
        self._refuse_holes()

    def _check_size(self, most: int) -> None:
        if not 0 <= self.size <= most:
            raise _DeclaredError(f"member {_short(self.name)} claims {self.size:,} bytes")

    def _refuse_holes(self) -> None:
        raise _DeclaredError(
            f"member {_short(self.name)} is sparse, unlike anything in the published archive"
        )


_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


class _DeclaredError(Exception):
    """Raised if the declarations in a member's header are rejected."""


def _short(name: str) -> str:
    return repr(name if len(name) < 100 else f"{name[:100]}...")


@contextmanager
def _tar(source: io.BufferedReader, file: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar, gzipped or plain."""
    gzipped = source.peek(2)[:2] == GZIP_MAGIC
    if not gzipped:
        log.warning(
            "%s is a plain tar, in which nothing reveals a changed byte of a file; tasks check the"
            " number and content of theirs as far as there are published ones to compare with",
            file,
        )
    stream: Any = gzip.GzipFile(fileobj=source) if gzipped else source
    with stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as archive:
        yield archive


def _unpack(source: io.BufferedReader, file: Path, partial: Mapping[Part, Path]) -> set[str]:
    """Write the members that belong to parts; return some of the names seen, three levels deep."""
    seen: set[str] = set()
    written = dict.fromkeys(partial, 0)
    try:
        with _tar(source, file) as archive:
            for member in iter(archive.next, None):
                # If kept, the descriptions of two million files would fill the memory.
                archive.members.clear()  # type: ignore[attr-defined]  # not in the stubs
                if len(seen) < 1_000:
                    seen.add("/".join(word[:MAX_NAME] for word in member.name.split("/")[:3]))
                if member.offset > MAX_BYTES:
                    raise _DeclaredError(f"more than {MAX_BYTES:,} bytes unpacked")
                part, place = _place(member, file, partial)
                if part is not None and place is not None:
                    written[part] += member.size
                    if written[part] > MAX_TIMES * part.unpacked:
                        raise _DeclaredError(f"{part.folder} claims {written[part]:,} bytes")
                    _write(archive, member, file, place)
            _check_end(archive)
    except _DeclaredError as error:
        raise DataError(f"{file}: {error}; not unpacked") from error
    # Besides its own errors, tarfile raises any error of Python's from a misread header.
    except (EOFError, gzip.BadGzipFile, zlib.error, tarfile.TarError, *_MISREAD) as error:
        raise DataError(
            f"{file}: truncated, damaged or not a tar, gzipped or plain ({error}); delete it and"
            " fetch it again"
        ) from error
    return seen


_MISREAD = (ValueError, OverflowError, MemoryError, LookupError, RecursionError, TypeError)


def _check_end(archive: tarfile.TarFile) -> None:
    """Check that nothing but zeros follows the last member."""
    assert archive.fileobj is not None
    total = archive.offset
    while rest := archive.fileobj.read(CHUNK):
        total += len(rest)
        # To tarfile, a damaged header looks like the end.
        if rest.count(0) < len(rest):
            raise tarfile.ReadError("there are bytes after its end")
        if total > MAX_BYTES:
            raise _DeclaredError(f"more than {MAX_BYTES:,} bytes unpacked")


def _place(
    member: tarfile.TarInfo, file: Path, partial: Mapping[Part, Path]
) -> tuple[Part | None, Path | None]:
    """Return the part of a member and its destination; None for members that no task reads."""
    words = member.name.split("/")
    if member.name.startswith("/") or ".." in words:
        raise DataError(
            f"{file}: member {_short(member.name)} points outside the archive; not unpacked"
        )
    name = "/".join(word for word in words if word not in ("", "."))
    for part, folder in partial.items():
        inside = name.startswith(f"{part.folder}/")
        if not inside and not f"{part.folder}/".startswith(f"{name}/"):
            continue
        if member.isdir():
            return None, None
        # Links, devices and pipes, or a file in place of the part's folder or one above it.
        if not inside or member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise DataError(
                f"{file}: member {_short(member.name)} is neither a plain file nor a folder (type"
                f" {member.type.decode('ascii', 'replace')!r}); not unpacked"
            )
        below = name.removeprefix(f"{part.folder}/")
        if any(len(os.fsencode(word)) > MAX_NAME for word in words):
            name = _short(member.name)
            raise DataError(f"{file}: member {name} has a name longer than {MAX_NAME} bytes")
        return (part, folder / below) if part.reads(below) else (None, None)
    return None, None


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, file: Path, place: Path) -> None:
    content = archive.extractfile(member)
    assert content is not None
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(place, "xb") as out:
            shutil.copyfileobj(content, out, CHUNK)
    except FileExistsError:
        raise DataError(f"{file}: member {member.name!r} is in it twice") from None
