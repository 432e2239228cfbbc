"""Folders that are written to: errors of the disk name the key that chose the folder."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lra.paths import existing
from lra.words import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = {
    errno.EROFS: "is on a read-only file system",
    errno.EACCES: "may not be written to by this user",
    errno.EPERM: "may not be written to by this user",
    errno.ENOENT: "is gone",
    errno.ESTALE: "is gone from its server",
    errno.ENOTDIR: "is not a folder",
    errno.EEXIST: "is not a folder",
    errno.EISDIR: "holds a folder where a file should be",
    errno.EIO: "is on a disk that reports errors",
    errno.ENAMETOOLONG: "has a name that is too long for its file system",
}


class FolderError(ConfigError):
    """A folder cannot be written to; the message names its key."""


@contextmanager
def writing(key: str, folder: Path, doing: str) -> Iterator[None]:
    """Turn an error of the disk into one that says where it occurred and what to do.

    Args:
        key: The configuration key that chose the folder.
        folder: The folder that is written to.
        doing: The operation, such as `writing checkpoint.pt`.

    Raises:
        FolderError: The disk is full, or the folder is read-only, gone or not a folder.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            state = f"the disk is full ({_free(folder)}) while {doing}; free some space"
        elif error.errno in _REFUSED:
            # If there are two names, the second is that of the file to be created.
            name = Path(str(error.filename2 or error.filename or "")).name
            found = f" ({name})" if error.errno == errno.EISDIR and name else ""
            state = f"it {_REFUSED[error.errno]}{found}, while {doing}; mend that"
        else:
            raise
        raise FolderError(
            f"{key}={folder}: {state} or choose another {key}, then start again"
        ) from error


def writable(folder: Path) -> bool:
    """Return whether files can be created in a folder, or in the parent it would be created in."""
    above = existing(folder)
    return above.is_dir() and os.access(above, os.W_OK | os.X_OK)


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB free"
    except OSError:
        return "free space unknown"


@contextmanager
def replacing(file: Path, keep: Path | None = None) -> Iterator[BinaryIO]:
    """Open a file to write that takes the place of `file` once it is complete, or not at all.

    Args:
        file: The file.
        keep: Where an existing file is moved to; without it, that file is replaced.

    Raises:
        OSError: The disk refused; what was written is removed, and an existing file stays.
    """
    partial = file.with_name(f"{file.name}.partial")
    try:
        with open(partial, "wb") as target:
            yield target
            target.flush()
            os.fsync(target.fileno())
        if keep is not None and file.exists():
            _keep(file, keep)
        os.replace(partial, file)
    except OSError:
        # Left behind, it would keep the disk full.
        with suppress(OSError):
            partial.unlink()
        raise


def _keep(file: Path, other: Path) -> None:
    """Give a file a second name, while it remains readable under its first."""
    link = other.with_name(f"{other.name}.partial")
    link.unlink(missing_ok=True)
    try:
        os.link(file, link)
    except OSError:  # a file system without links
        link = file
    os.replace(link, other)


def write_arrays(folder: Path, name: str, **arrays: "NDArray[Any]") -> None:
    """Write named arrays into a run folder, compressed, completely or not at all.

    Args:
        folder: Run folder.
        name: Name of the file, such as `predictions.npz`.
        arrays: The arrays, by the names under which `numpy.load` returns them.

    Raises:
        FolderError: The folder cannot be written to.
    """
    # Imported here, so that commands that write no arrays start without it.
    import numpy as np

    with writing("runs_dir", folder, f"writing {name}"), replacing(folder / name) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
