"""Allow one process at a time in a folder, and write a note beside the lock that says which.

The lock ends with its process, however that ends. The note is for everybody else: it says which
process on which machine works there, since when and how far it is, and how the last one ended.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lra.config import ConfigError
from lra.folders import writing
from lra.liveness import NO_LOCKS, is_alive
from lra.typecheck import fits
from lra.words import shown

log = logging.getLogger(__name__)

# Seconds between two notes, and seconds without a note after which a process on another machine is
# considered dead: the clocks of a cluster may differ, and a network disk may be slow.
BEAT, DEAD_AFTER = 15.0, 300.0
# Later times have no date, so no note has one: the year 10000, in seconds since 1970.
MAX_TIMESTAMP = 253_402_300_800.0


@dataclass(frozen=True, kw_only=True)
class Note:
    """The process that works in a folder, or worked there last.

    Args:
        host: The machine.
        pid: The process.
        since: When it started, in seconds since 1970.
        updated: When it was last seen, in seconds since 1970.
        step: Number of updates made; 0 if it makes none.
        steps: Updates in the whole run.
        ended: How it ended; empty while it works, or if it was killed.
        forced: The jobs that last started the work here from scratch, because they were told to.
    """

    host: str
    pid: int
    since: float
    updated: float
    step: int = 0
    steps: int = 0
    ended: str = ""
    forced: list[str] = field(default_factory=list)

    @property
    def is_active(self) -> bool:
        """Whether the process is still at work, as far as can be seen from this machine."""
        if self.ended:
            return False
        if self.host == socket.gethostname() and not is_alive(self.pid):
            return False
        return time.time() - self.updated < DEAD_AFTER

    def __str__(self) -> str:
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.since))
        step = f", at step {self.step} of {self.steps}" if self.steps else ""
        return f"process {self.pid} on {shown(self.host)}, since {began}{step}"


def read_note(file: Path) -> Note | None:
    """Return a note, or None if there is none or it cannot be read."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        note = Note(**values)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    hints: dict[str, Any] = {each: Note.__annotations__[each] for each in values}
    if not all(fits(values[each], kind) for each, kind in hints.items()):
        return None
    return note if all(0 <= each < MAX_TIMESTAMP for each in (note.since, note.updated)) else None


class Holder:
    """Keep a note up to date from a separate thread.

    Args:
        file: The note.
        key: The configuration key that chose its folder.
    """

    def __init__(self, file: Path, key: str) -> None:
        now = time.time()
        self._file, self._key = file, key
        self._note = Note(host=socket.gethostname(), pid=os.getpid(), since=now, updated=now)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="note", daemon=True)
        # How the work ended; set by the holder of the lock.
        self.ended = ""
        # The jobs that started the work here from scratch, which a later process does not change.
        before = read_note(file)
        self.forced: list[str] = before.forced if before else []
        # Returns the number of updates made, and the number in the whole run.
        self.progress: Callable[[], tuple[int, int]] = lambda: (0, 0)

    def start(self) -> None:
        """Write the first note and keep updating it."""
        with writing(self._key, self._file.parent, f"writing {self._file.name}"):
            self._write()
        self._thread.start()

    def end(self) -> None:
        """Write the last note."""
        self._done.set()
        self._thread.join()
        self._write_if_possible()

    def _beat(self) -> None:
        while not self._done.wait(BEAT):
            self._write_if_possible()

    def _write_if_possible(self) -> None:
        try:
            self._write()
        except OSError as error:
            # A note is not worth failing a run; the next write to the disk reports a full one.
            log.debug("%s: %s", self._file, error)

    def _write(self) -> None:
        step, steps = self.progress()
        note = replace(
            self._note,
            updated=time.time(),
            step=step,
            steps=steps,
            ended=self.ended,
            forced=self.forced,
        )
        partial = self._file.with_name(f"{self._file.name}.partial")
        partial.write_text(json.dumps(asdict(note)) + "\n", encoding="utf-8")
        os.replace(partial, self._file)


@contextmanager
def held(file: Path, note: Path, key: str, what: str) -> Iterator[Holder]:
    """Hold a lock, so that no other process does the same work.

    Args:
        file: The lock; it stays, and means nothing without a process that holds it.
        note: The file that says which process holds it.
        key: The configuration key that chose the folder, for messages.
        what: What the holder does, such as `trains this cell`.

    Raises:
        ConfigError: Another process holds the lock; the message says which.
        FolderError: The folder cannot be written to.
    """
    # A lock file without the kernel's lock would outlive a killed process.
    lock = FileLock(file, fallback_to_soft=False)
    if not _acquired(lock, file, note, key):
        who = f": {other}" if (other := read_note(note)) else ""
        raise ConfigError(
            f"{file.parent}: another process {what}{who}; wait for it or stop it, then start again"
        )
    try:
        holder = Holder(note, key)
        holder.start()
        try:
            yield holder
        except BaseException as error:
            first_line = str(error).splitlines()[:1]
            holder.ended = holder.ended or " ".join([f"{type(error).__name__}:", *first_line])
            raise
        finally:
            holder.end()
    finally:
        lock.release()


def _acquired(lock: FileLock, file: Path, note: Path, key: str) -> bool:
    """Try to take a lock; if the file system has no locks, the note alone decides."""
    try:
        with writing(key, file.parent, f"locking {file.name}"):
            lock.acquire(blocking=False)
    except Timeout:
        return False
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        other = read_note(note)
        ours = (socket.gethostname(), os.getpid())
        # Containers on different machines often give the same number to their processes.
        if other is not None and other.is_active and (other.host, other.pid) != ours:
            return False
        log.warning("%s: no locks on this file system; using %s instead", file.parent, note.name)
    return True
