"""Let one process work at a time; waiting ones log who holds the lock, since when and for what.

The lock is the kernel's, so a dead process never holds one. A note beside it says who holds it, but
decides nothing. On a file system without locks, the existence of a file is the lock; a file left
behind by a dead process of this machine is recognised.
"""

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from lra.liveness import NO_LOCKS, is_alive

log = logging.getLogger(__name__)

# Seconds between two log lines of a waiting process.
REMIND = 300.0


@contextmanager
def held(file: Path, doing: str) -> Iterator[None]:
    """Hold a lock, waiting for it as long as it takes.

    Args:
        file: The lock's file, whose folder exists.
        doing: What is done under the lock, for waiting processes, such as `builds listops-0123`.

    Raises:
        OSError: The file cannot be created.
    """
    lock = _acquired(file)
    note = file.with_name(f"{file.name}.holder")
    try:
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
        # A folder in which no note can be written may still be locked.
        with suppress(OSError):
            note.write_text(json.dumps(holder | {"doing": doing}))
        yield
    finally:
        with suppress(OSError):
            note.unlink()
        lock.release()


def _acquired(file: Path) -> BaseFileLock:
    """Return the lock, acquired."""
    lock: BaseFileLock = FileLock(file, fallback_to_soft=False)
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
    """Return, as text, who holds a lock, and what to do if that process is gone."""
    try:
        holder = json.loads(file.with_name(f"{file.name}.holder").read_text())
        pid, host, doing = int(holder["pid"]), str(holder["host"]), str(holder["doing"])
        since = time.strftime("%d %b %H:%M:%S", time.localtime(float(holder["since"])))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return f"another process that holds {file}"
    words = f"process {pid} on {host}, which {doing} and has held {file} since {since}"
    if host != socket.gethostname():
        return f"{words}; if that machine no longer runs it, delete that file"
    return (
        words
        if is_alive(pid)
        else f"{words}; it is gone, so a process that it started holds the lock"
    )
