"""Raw data on disk: where they are looked for, what of them is missing, what tells them apart."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lra.tasks import DataError

# How deep, and among how many names, files are looked for where they should not be.
DEPTH = 4
MOST_NAMES = 20_000


def is_junk(name: str) -> bool:
    """Tell whether a name is of what file managers leave everywhere, such as `._0.npy`."""
    return name.startswith("._") or name in (".DS_Store", "Thumbs.db", "desktop.ini")


def check_data_dir(data_dir: Path | None) -> None:
    """Refuse a folder of raw data that is none.

    Raises:
        DataError: There is no such folder.
    """
    if data_dir is not None and not data_dir.is_dir():
        state = "is no folder" if data_dir.exists() else "does not exist"
        raise DataError(f"data_dir={data_dir} {state}; name the folder of raw data, or none")


def signature(folder: Path, files: Iterable[Path]) -> str:
    """Return what changes when a file is edited, exchanged, added or removed.

    Names, sizes and times of change are read, not contents: cheap for 200,000 files.

    Args:
        folder: Where the files are; another one is another source.
        files: Files below it, in any order.
    """
    digest = hashlib.sha256(os.fsencode(folder.resolve()))
    for file in sorted(files):
        stat = file.stat()
        name = os.fsencode(os.path.relpath(file, folder))
        digest.update(b"\0%b\0%d\0%d" % (name, stat.st_size, stat.st_mtime_ns))
    return digest.hexdigest()[:16]


def tree_signature(folder: Path, branches: Sequence[Path]) -> str:
    """Return the `signature` of all that is in folders below a folder and in their folders."""
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
    """Return the files of a task in the first folder that has them all; none where none has any.

    Args:
        what: The task, for messages.
        data_dir: Folder of raw data.
        folders: Folders below it where they may be.
        names: Names of the files.

    Raises:
        DataError: A folder has some of them, or they are where nobody looks.
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
    """Refuse files of which some are there and some are not.

    Raises:
        DataError: That is so.
    """
    there = [file for file in files if file.exists()]
    if there and len(there) < len(files):
        missing = ", ".join(file.name for file in files if file not in there)
        have = ", ".join(file.name for file in there)
        raise DataError(f"{what}: {files[0].parent} lacks {missing}; it has {have}")


def check_strays(what: str, data_dir: Path, folders: Sequence[str], names: Iterable[str]) -> None:
    """Refuse files that are there, but where nobody looks for them.

    Raises:
        DataError: That is so; the message says where to point `data_dir` at.
    """
    for place in _strays(data_dir, frozenset(names)):
        looked = ", ".join("itself" if folder == "." else folder for folder in folders)
        raise DataError(
            f"{what}: {place} is not where it is looked for; below data_dir={data_dir} that is"
            f" {looked}. data_dir={place.parent} would find it"
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
                # Pictures lie in folders of thousands.
                hidden = entry.name.startswith(".") or entry.name.endswith(".partial")
                if not hidden and entry.name != "imgs" and entry.is_dir():
                    below.append(entry.path)
            if seen > MOST_NAMES:
                return
        level = below


def numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield lines without their ends, with their numbers, and without blank ones at the end."""
    blank = 0
    for number, line in enumerate(lines, start=1):
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        if not line:
            blank += 1
            continue
        yield from ((each, b"") for each in range(number - blank, number))
        blank = 0
        yield number, line
