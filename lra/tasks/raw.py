"""Find raw data on disk, report missing parts, and compute signatures that identify them."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lra.tasks import DataError

# Limits of depth and of the number of names in the search for misplaced files.
DEPTH = 4
MAX_NAMES = 20_000


def is_junk(name: str) -> bool:
    """Return whether a name is that of a file manager's leftovers, such as `._0.npy`."""
    return name.startswith("._") or name in (".DS_Store", "Thumbs.db", "desktop.ini")


def check_data_dir(data_dir: Path | None) -> None:
    """Reject a folder of raw data that does not exist or is not a folder.

    Raises:
        DataError: There is no such folder.
    """
    if data_dir is not None and not data_dir.is_dir():
        state = "is not a folder" if data_dir.exists() else "does not exist"
        raise DataError(
            f"data_dir={data_dir} {state}; set it to the folder of raw data, or leave it unset"
        )


def signature(folder: Path, files: Iterable[Path]) -> str:
    """Return a signature that changes if a file is edited, replaced, added or removed.

    It covers names, sizes and modification times, not contents, and is cheap for 200,000 files.

    Args:
        folder: Folder of the files; a different folder gives a different signature.
        files: Files below it, in any order.
    """
    digest = hashlib.sha256(os.fsencode(folder.resolve()))
    for file in sorted(files):
        stat = file.stat()
        name = os.fsencode(os.path.relpath(file, folder))
        digest.update(b"\0%b\0%d\0%d" % (name, stat.st_size, stat.st_mtime_ns))
    return digest.hexdigest()[:16]


def tree_signature(folder: Path, branches: Sequence[Path]) -> str:
    """Return the `signature` of everything in some branches of a folder, recursively."""
    lines = []
    stack = [str(branch) for branch in branches]
    while stack:
        place = stack.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                if is_junk(entry.name):
                    continue
                if entry.is_dir():
                    stack.append(entry.path)
                else:
                    stat = entry.stat()
                    lines.append(f"{entry.path}\0{stat.st_size}\0{stat.st_mtime_ns}")
    lines.sort()
    digest = hashlib.sha256(os.fsencode(folder.resolve()))
    for line in lines:
        digest.update(b"\0" + os.fsencode(line.removeprefix(str(folder))))
    return digest.hexdigest()[:16]


def find(
    what: str, data_dir: Path, folders: Sequence[str], names: Sequence[str]
) -> tuple[Path, ...]:
    """Return the files of a task in the first folder that has them all; empty if none has any.

    Args:
        what: The task, for messages.
        data_dir: Folder of raw data.
        folders: Folders below it that are searched.
        names: Names of the files.

    Raises:
        DataError: A folder has only some of the files, or they are in an unexpected place.
    """
    for folder in folders:
        files = tuple(data_dir / folder / name for name in names)
        if all(file.is_file() for file in files):
            return files
    for folder in folders:
        files = tuple(data_dir / folder / name for name in names)
        check_part(what, files)
    check_strays(what, data_dir, folders, names)
    return ()


def check_part(what: str, files: Sequence[Path]) -> None:
    """Reject a set of files of which only some exist.

    Raises:
        DataError: Some of the files exist and some do not.
    """
    there = [file for file in files if file.exists()]
    if there and len(there) < len(files):
        missing = ", ".join(file.name for file in files if file not in there)
        have = ", ".join(file.name for file in there)
        raise DataError(f"{what}: {files[0].parent} lacks {missing}; it has {have}")


def check_strays(what: str, data_dir: Path, folders: Sequence[str], names: Iterable[str]) -> None:
    """Reject files that exist in a place that is not searched.

    Raises:
        DataError: There are such files; the message says what to set `data_dir` to.
    """
    for place in _strays(data_dir, frozenset(names)):
        if place.parent in (data_dir / folder for folder in folders):
            state = (
                "a folder" if place.is_dir() else "a file" if place.exists() else "a broken link"
            )
            raise DataError(f"{what}: {place} is {state}, without the data of this task")
        searched = ", ".join("itself" if folder == "." else folder for folder in folders)
        raise DataError(
            f"{what}: {place} is not in a folder that is searched; data_dir={data_dir} is"
            f" searched in {searched}. data_dir={place.parent} would find it"
        )


def _strays(data_dir: Path, names: frozenset[str]) -> Iterator[Path]:
    level, seen = [str(data_dir)], 0
    for _ in range(DEPTH):
        below = []
        for folder in level:
            try:
                entries = list(os.scandir(folder))
            except OSError:
                continue
            for entry in sorted(entries, key=lambda entry: entry.name):
                seen += 1
                if entry.name in names:
                    yield Path(entry.path)
                # Folders of pictures hold thousands of files.
                hidden = entry.name.startswith(".") or entry.name.endswith(".partial")
                if not hidden and entry.name != "imgs" and entry.is_dir():
                    below.append(entry.path)
            if seen > MAX_NAMES:
                return
        level = below


def numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield numbered lines without their line ends, and without blank lines at the end."""
    blank = 0
    for number, line in enumerate(lines, start=1):
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        if not line:
            blank += 1
            continue
        yield from ((each, b"") for each in range(number - blank, number))
        blank = 0
        yield number, line
