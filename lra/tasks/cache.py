"""Data sets built once, memory-mapped, and told apart by what is in them.

A data set is a folder `<task>-<hash>/` with three files a split and `manifest.json`. It is written
under a temporary name and renamed last, so what is under the final name is whole. The
fingerprint is the sha256 of the content: equal fingerprints mean equal data.
"""

import errno
import hashlib
import inspect
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from lra.tasks import SPLITS, DataError, Source, Split, Task

log = logging.getLogger(__name__)

LAYOUT = 2
# Of the rows that are left out, so many a split are named one by one.
NUM_NAMED = 10


@dataclass(frozen=True)
class Dataset:
    """A task's three splits as they stand in the cache.

    Args:
        splits: By name: `train`, `validation`, `test`.
        source: Where they came from.
        fingerprint: sha256 of the content, 64 hex digits.
        folder: Where they lie.
        seconds: How long the build took.
        num_skipped: Bad rows that were left out, by split.
    """

    splits: Mapping[str, Split]
    source: Source
    fingerprint: str
    folder: Path
    seconds: float
    num_skipped: Mapping[str, int]


class SplitWriter:
    """Append examples to the files of one split; memory stays small whatever the split's size."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._tokens = open(folder / f"{name}.tokens.bin", "wb")  # noqa: SIM115  # see __exit__
        self._lengths: list[int] = []
        self._labels: list[int] = []
        self.num_skipped = 0

    def __len__(self) -> int:
        return len(self._labels)

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tokens.close()
        if kind is None:
            offsets = np.concatenate([[0], np.cumsum(self._lengths, dtype=np.int64)])
            np.save(self._folder / f"{self._name}.offsets.npy", offsets.astype(np.int64))
            np.save(self._folder / f"{self._name}.labels.npy", np.array(self._labels, np.int64))

    def add(self, label: int, *sequences: bytes | NDArray[np.uint8]) -> None:
        """Append an example of `label` with its sequences of symbols."""
        for sequence in sequences:
            self._tokens.write(bytes(sequence))
            self._lengths.append(len(sequence))
        self._labels.append(label)

    def skip(self, reason: str) -> None:
        """Count a row that is left out; the first few are named in the log."""
        self.num_skipped += 1
        if self.num_skipped <= NUM_NAMED:
            log.warning("left out of %s: %s", self._name, reason)
        if self.num_skipped == NUM_NAMED:
            log.warning("further rows left out of %s are only counted", self._name)


def fingerprint(splits: Mapping[str, Split]) -> str:
    """Return the sha256 of the splits' names, tokens, offsets and labels as 64 hex digits."""
    digest = hashlib.sha256()
    for name in SPLITS:
        split = splits[name]
        digest.update(name.encode())
        for array in (split.tokens, split.offsets, split.labels):
            digest.update(len(array).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def load(name: str, task: Task, cache_dir: Path, data_dir: Path | None = None) -> Dataset:
    """Return a task's data, from the cache or built into it.

    Args:
        name: The task's name, for the folder and for messages.
        task: The task with its options.
        cache_dir: Folder of all cached data sets.
        data_dir: Folder of raw data, for tasks that read some.

    Raises:
        DataError: Raw data are missing or damaged, or the disk is full.
    """
    source = task.locate(data_dir)
    folder = cache_dir / f"{name}-{key(task, source)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        try:
            return _open(folder, source)
        except (FileNotFoundError, ValueError, KeyError) as error:
            log.warning("%s is damaged (%s); building it again", folder, error)
    # Of two processes that want the same data, one builds and the other waits for it.
    with FileLock(f"{folder}.lock"):
        try:
            return _open(folder, source)
        except (FileNotFoundError, ValueError, KeyError):
            shutil.rmtree(folder, ignore_errors=True)
        with full_disk_named("cache_dir", folder.parent, f"building {folder.name}"):
            _build(folder, task, source)
        return _open(folder, source)


def built(name: str, task: Task, cache_dir: Path, source: Source) -> Dataset | None:
    """Return a data set of the cache, its content unchecked; None where it has none.

    Args:
        name: The task's name.
        task: The task with its options.
        cache_dir: Folder of all cached data sets.
        source: What `task.locate` found.
    """
    try:
        return _read(cache_dir / f"{name}-{key(task, source)}", source)
    except (FileNotFoundError, ValueError, KeyError):
        return None


def key(task: Task, source: Source) -> str:
    """Return what tells a data set from others of its name: 12 hex digits of its identity."""
    identity = {
        "layout": LAYOUT,
        "version": task.version,
        "options": asdict(task),  # type: ignore[call-overload]  # tasks are dataclasses
        "source": [source.kind, source.signature],
    }
    if not type(task).__module__.startswith("lra."):
        # The version of ours is kept by us; a user's own file may change at any time.
        identity["code"] = _code(type(task))
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def _code(kind: type[Task]) -> str:
    """Return the sha256 of the file that a class is in, empty where it is in none."""
    try:
        return hashlib.sha256(Path(inspect.getfile(kind)).read_bytes()).hexdigest()
    except (OSError, TypeError):
        return ""


def _build(folder: Path, task: Task, source: Source) -> None:
    started = time.perf_counter()
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    log.info("building %s: %s", folder.name, source)
    try:
        with (
            SplitWriter(partial, "train") as train,
            SplitWriter(partial, "validation") as validation,
            SplitWriter(partial, "test") as test,
        ):
            writers = {"train": train, "validation": validation, "test": test}
            task.write(source, writers)
            if empty := [name for name, writer in writers.items() if not len(writer)]:
                raise DataError(f"{source}: no example for {empty[0]}")
        manifest = {
            "fingerprint": fingerprint({split: _open_split(partial, split) for split in SPLITS}),
            "source": {"kind": source.kind, "description": source.description},
            "options": asdict(task),  # type: ignore[call-overload]  # tasks are dataclasses
            "num_skipped": {name: writer.num_skipped for name, writer in writers.items()},
            "seconds": round(time.perf_counter() - started, 3),
        }
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _open(folder: Path, source: Source) -> Dataset:
    dataset = _read(folder, source)
    if fingerprint(dataset.splits) != dataset.fingerprint:
        raise ValueError("its content does not match its fingerprint")
    return dataset


def _read(folder: Path, source: Source) -> Dataset:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    splits = {name: _open_split(folder, name) for name in SPLITS}
    return Dataset(
        splits,
        source,
        manifest["fingerprint"],
        folder,
        manifest["seconds"],
        manifest["num_skipped"],
    )


def _open_split(folder: Path, name: str) -> Split:
    # Mode "c" (copy on write) is read-only for the file, and torch takes it without a warning.
    tokens = np.memmap(folder / f"{name}.tokens.bin", np.uint8, mode="c")
    offsets = np.load(folder / f"{name}.offsets.npy")
    return Split(tokens, offsets, np.load(folder / f"{name}.labels.npy"))


@contextmanager
def full_disk_named(key: str, folder: Path, doing: str) -> Iterator[None]:
    """Turn a full disk into an error that says where and what to do.

    Args:
        key: The configuration key that chose the folder.
        folder: What is written to; it exists.
        doing: What is done, such as `fetching the archive`.

    Raises:
        DataError: The disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(folder).free
        raise DataError(
            f"{key}={folder}: the disk is full ({free / 2**20:.0f} MiB free) while {doing}; free"
            f" some space or choose another {key}, then start again"
        ) from error
