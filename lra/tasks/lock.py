"""One process at a time, and a line for those that wait: for whom, since when, for what.

The lock is the kernel's, so a dead process holds none. Beside it lies a note of who holds it,
which decides nothing. On a file system without locks, existence of a file is the lock; one that a
dead process of this machine left behind is recognised.
"""

import errno
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

log = logging.getLogger(__name__)

# Seconds between two lines of a process that waits.
REMIND = 300.0
# What file systems without locks answer.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def held(file: Path, doing: str) -> Iterator[None]:
    """Hold a lock, waiting for it as long as it takes.

    Args:
        file: The lock's file; its folder exists.
        doing: What is done under it, for those that wait, such as `builds listops-0123`.

    Raises:
        OSError: The file cannot be made.
    """
    lock = _acquired(file)
    note = file.with_name(f"{file.name}.holder")
    try:
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
        # A folder that takes no note may still be locked.
        with suppress(OSError):
            note.write_text(json.dumps(holder | {"doing": doing}))
        yield
    finally:
        with suppress(OSError):
            note.unlink()
        lock.release()


def _acquired(file: Path) -> BaseFileLock:
    """Return the lock, acquired."""
    lock: BaseFileLock = FileLock(file)
    waits = 0.0
    while True:
        try:
            lock.acquire(timeout=waits)
            return lock
        except Timeout:
            log.warning("waiting for %s", describe(file))
            waits = REMIND
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise
            log.warning("%s: the file system has no locks; the file itself is the lock", file)
            lock = SoftFileLock(file.with_name(f"{file.name}.soft"))


def describe(file: Path) -> str:
    """Return who holds a lock, and what to do where that process is gone, in words."""
    try:
        holder = json.loads(file.with_name(f"{file.name}.holder").read_text())
        pid, host, doing = int(holder["pid"]), str(holder["host"]), str(holder["doing"])
        since = time.strftime("%d %b %H:%M:%S", time.localtime(float(holder["since"])))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return f"another process that holds {file}"
    words = f"process {pid} on {host}, which {doing} since {since} and holds {file}"
    if host != socket.gethostname():
        return f"{words}; if that machine no longer runs it, delete that file"
    return words if _is_alive(pid) else f"{words}; it is gone, so one that it started holds it"


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.pid_exists(pid))
    except OverflowError:
        return True
