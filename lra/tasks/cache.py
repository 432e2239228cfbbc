"""Cache data sets: built once, memory-mapped, and identified by their content.

A data set is a folder `<task>-<hash>/` with three files per split and `manifest.json`. It is
written under a temporary name and renamed last, so a folder with the final name is complete. The
fingerprint is the sha256 of the content: equal fingerprints mean equal data.
"""

import errno
import hashlib
import json
import logging
import operator
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from lra import provenance
from lra.paths import existing
from lra.tasks import SPLITS, DataError, Source, Split, Task, raw
from lra.tasks.lock import held

log = logging.getLogger(__name__)

LAYOUT = 2
KINDS = get_args(get_type_hints(Source)["kind"])
# Number of left-out rows per split that are logged one by one.
NUM_NAMED = 10
# Seconds without a new example after which a build logs that.
PATIENCE = 200.0


class DamagedError(ValueError):
    """Raised if something in the cache has the name of a data set but is not one."""


@dataclass(frozen=True)
class Dataset:
    """A task's three splits as stored in the cache.

    Args:
        splits: The splits by name: `train`, `validation`, `test`.
        source: Where they came from.
        fingerprint: sha256 of the content, 64 hex digits.
        folder: Folder in the cache.
        seconds: How long the build took.
        num_skipped: Number of bad rows left out, by split.
    """

    splits: Mapping[str, Split]
    source: Source
    fingerprint: str
    folder: Path
    seconds: float
    num_skipped: Mapping[str, int]


class SplitWriter:
    """Append examples to the files of one split, in little memory whatever the split's size."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._tokens = open(folder / f"{name}.tokens.bin", "wb")  # noqa: SIM115  # see __exit__
        self._lengths: list[int] = []
        self._labels: list[int] = []
        self.num_skipped = 0
        # Sequences of each example.
        self._number = 0

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
        """Append an example with its label and its sequences of symbols.

        Raises:
            DataError: A sequence is neither bytes nor uint8 `(N,)`, the label is no whole number,
                or the number of sequences is not that of the first example.
        """
        for sequence in sequences:
            if isinstance(sequence, np.ndarray):
                fits = sequence.dtype == np.uint8 and sequence.ndim == 1
            else:
                fits = isinstance(sequence, (bytes, bytearray, memoryview))
            if not fits:
                kind = type(sequence).__name__
                if isinstance(sequence, np.ndarray):
                    kind = f"{sequence.dtype} of shape {sequence.shape}"
                self._refuse(f"a sequence is {kind}, must be bytes or uint8 (N,)")
            self._tokens.write(bytes(sequence))
            self._lengths.append(len(sequence))
        try:
            label = int(label) if isinstance(label, np.bool_) else operator.index(label)
        except TypeError:
            self._refuse(f"label {label!r}, must be a whole number")
        self._number = self._number or len(sequences)
        if not sequences or len(sequences) != self._number:
            wanted = f"{self._number} as in the first" if self._number else "at least 1"
            self._refuse(f"{len(sequences)} sequences, must be {wanted}")
        self._labels.append(label)

    def _refuse(self, reason: str) -> NoReturn:
        raise DataError(f"{self._name}, example {len(self)}: {reason}")

    def skip(self, reason: str) -> None:
        """Count a row that is left out, and log the first few."""
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
        data_dir: Folder of raw data, for tasks that read any.

    Raises:
        DataError: Raw data are missing or damaged, or the disk is full.
    """
    # Also for a task that reads no raw data: whoever names a folder expects it to exist.
    raw.check_data_dir(data_dir)
    source = task.locate(data_dir)
    dataset = _load(name, task, cache_dir, source)
    check_demand(task, dataset.source)
    return dataset


def check_demand(task: Task, source: Source) -> None:
    """Reject data of another kind than a task's option `source` demands.

    Raises:
        DataError: They are of another kind, by their content.
    """
    demanded = getattr(task, "source", None)
    # In a user's own task, such an option may mean anything else.
    if demanded in KINDS and demanded != source.kind:
        raise DataError(
            f"task.options.source={demanded}: {source} is {source.kind}, by its content"
        )


def _load(name: str, task: Task, cache_dir: Path, source: Source) -> Dataset:
    folder = cache_dir / f"{name}-{key(task, source)}"
    with naming_full_disk("cache_dir", cache_dir, f"building {folder.name}"):
        cache_dir.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(folder):
            try:
                return _open(folder, source)
            except DamagedError as error:
                log.warning("%s is damaged (%s); building it again", folder, error)
        # If two processes want the same data, one builds them and the other waits.
        with held(folder.with_name(f"{folder.name}.lock"), f"builds {folder.name}"):
            try:
                return _open(folder, source)
            except DamagedError:
                _remove(folder)
            _build(folder, task, source)
            return _open(folder, source)


def _remove(path: Path) -> None:
    """Free a path by removing what is there; what cannot be removed is renamed."""
    if not os.path.lexists(path):
        return
    aside = path.with_name(f"{path.name}.damaged-{os.getpid()}")
    os.rename(path, aside)
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.unlink()


def built(name: str, task: Task, cache_dir: Path, source: Source) -> Dataset | None:
    """Return a data set from the cache without checking its content; None if it is not there.

    Args:
        name: The task's name.
        task: The task with its options.
        cache_dir: Folder of all cached data sets.
        source: The source that `task.locate` found.
    """
    try:
        return _read(cache_dir / f"{name}-{key(task, source)}", source)
    except DamagedError:
        return None


def changed(dataset: Dataset) -> bool:
    """Return whether a data set's files have been overwritten since they were opened."""
    for name in SPLITS:
        # Reading mapped data that no longer exist would kill the process.
        file = _tokens_file(dataset.folder, name)
        if not file.is_file() or file.stat().st_size != len(dataset.splits[name].tokens):
            return True
    return fingerprint(dataset.splits) != dataset.fingerprint


def key(task: Task, source: Source) -> str:
    """Return the key of a data set among those of its name: 12 hex digits of its identity."""
    identity = {
        "layout": LAYOUT,
        "version": task.version,
        "options": _telling_options(task),
        "source": [source.kind, source.signature],
    }
    if code := code_of(task):
        identity["code"] = code
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def _telling_options(task: Task) -> dict[str, Any]:
    """Return the options that identify a data set.

    Options that a task lists as `younger` count only if they differ from their defaults, so that
    data sets built before these options existed keep their names.
    """
    options: dict[str, Any] = asdict(task)  # type: ignore[call-overload]  # tasks are dataclasses
    younger = getattr(task, "younger", ())
    for field in fields(task):  # type: ignore[arg-type]
        if field.name in younger and options[field.name] == field.default:
            del options[field.name]
    return options


def code_of(task: Task) -> str:
    """Return the sha256 of the code of a user's own task; empty for ours and without a file.

    It covers the task's file and the modules of its own package or folder that it imports. We
    maintain the versions of our tasks; a user's own file may change at any time.
    """
    module_name = type(task).__module__
    return "" if module_name.startswith("lra.") else provenance.code(module_name)


def _build(folder: Path, task: Task, source: Source) -> None:
    started = time.perf_counter()
    partial = folder.with_name(f"{folder.name}.partial")
    _remove(partial)
    partial.mkdir()
    # Not everyone expects generated data if a folder of raw data was named.
    level = logging.WARNING if source.kind == "generated" and source.place else logging.INFO
    log.log(level, "building %s: %s", folder.name, source)
    try:
        with (
            SplitWriter(partial, "train") as train,
            SplitWriter(partial, "validation") as validation,
            SplitWriter(partial, "test") as test,
        ):
            writers = {"train": train, "validation": validation, "test": test}
            with _warning_when_stuck(folder.name, writers):
                source = task.write(source, writers) or source
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


@contextmanager
def _warning_when_stuck(name: str, writers: Mapping[str, SplitWriter]) -> Iterator[None]:
    """Log repeatedly while no example has been written for a long time."""
    done = threading.Event()

    def watch() -> None:
        written = -1
        while not done.wait(PATIENCE):
            count = sum(len(writer) + writer.num_skipped for writer in writers.values())
            if count == written or (written < 0 and not count):
                log.warning(
                    "%s: no new example for %.0f s, %d so far; still building",
                    *(name, PATIENCE, count),
                )
            written = count

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _open(folder: Path, source: Source) -> Dataset:
    dataset = _read(folder, source)
    if fingerprint(dataset.splits) != dataset.fingerprint:
        raise DamagedError("its content does not match its fingerprint")
    return dataset


def _read(folder: Path, source: Source) -> Dataset:
    """Open a data set without checking its content; raise `DamagedError` if it is not one."""
    try:
        return _parsed(folder, source)
    except Exception as error:  # five modules with their own errors parse NumPy's header alone
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DamagedError(reason) from error


def _parsed(folder: Path, source: Source) -> Dataset:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    seconds, skipped = float(manifest["seconds"]), manifest["num_skipped"]
    if set(skipped) != set(SPLITS) or not all(type(skipped[name]) is int for name in SPLITS):
        raise ValueError(f"manifest.json: num_skipped is {skipped!r}")
    if not isinstance(manifest["fingerprint"], str):
        raise ValueError(f"manifest.json: fingerprint is {manifest['fingerprint']!r}")
    splits = {name: _open_split(folder, name) for name in SPLITS}
    found = manifest["source"]
    if found["kind"] not in KINDS or not isinstance(found["description"], str):
        raise ValueError(f"manifest.json: source is {found!r}")
    # The source that the files turned out to be when they were read.
    source = replace(source, kind=found["kind"], description=found["description"])
    return Dataset(splits, source, manifest["fingerprint"], folder, seconds, skipped)


def _tokens_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.tokens.bin"


def _open_split(folder: Path, name: str) -> Split:
    # Mode "c" (copy on write) is read-only for the file, and torch takes it without a warning.
    tokens = np.memmap(_tokens_file(folder, name), np.uint8, mode="c")
    offsets, labels = (_numbers(folder / f"{name}.{part}.npy") for part in ("offsets", "labels"))
    if not len(labels) or (len(offsets) - 1) % len(labels) or len(offsets) == 1:
        raise ValueError(f"{name}: {len(offsets)} offsets and {len(labels)} labels")
    if offsets[0] != 0 or offsets[-1] != len(tokens) or (np.diff(offsets) < 0).any():
        raise ValueError(f"{name}: its offsets are not those of {len(tokens)} tokens")
    return Split(tokens, offsets, labels)


def _numbers(file: Path) -> NDArray[np.int64]:
    # Mapped first, so that a header that claims more than the file holds takes no memory.
    numbers = np.load(file, mmap_mode="r", allow_pickle=False)
    if numbers.dtype != np.int64 or numbers.ndim != 1:
        raise ValueError(f"{file.name}: {numbers.dtype} of shape {numbers.shape}")
    return np.array(numbers)


@contextmanager
def naming_full_disk(key: str, folder: Path, doing: str) -> Iterator[None]:
    """Turn a full or read-only disk into an error that says where it is and what to do.

    Args:
        key: The configuration key that chose the folder.
        folder: The folder written to.
        doing: The activity, such as `fetching the archive`.

    Raises:
        DataError: The disk is full, or the folder cannot be written to or is not a folder.
    """
    try:
        yield
    except OSError as error:
        # Whether the error concerns a file below the folder; others concern other folders.
        there = error.filename is not None and _is_below(Path(str(error.filename)), folder)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(existing(folder)).free
            state = f"the disk is full ({free / 2**20:.0f} MiB free) while {doing}; free some space"
        elif error.errno == errno.EROFS or (there and error.errno in (errno.EACCES, errno.EPERM)):
            state = f"cannot be written to ({error.strerror}) while {doing}; make it writable"
        elif there and error.errno in (errno.ENOTDIR, errno.EEXIST):
            state = f"{existing(Path(str(error.filename)))} is not a folder; move it away"
        elif there and error.errno == errno.EISDIR:
            state = f"{error.filename} is a folder, should be a file; move it away"
        elif there and error.errno in (errno.ENOENT, errno.ENAMETOOLONG, errno.ESTALE):
            state = f"cannot be created or is gone ({error.strerror}) while {doing}; fix that"
        else:
            raise
        raise DataError(f"{key}={folder}: {state} or choose another {key}, then start again") from (
            error
        )


def _is_below(path: Path, folder: Path) -> bool:
    path, folder = path.absolute(), folder.absolute()
    return path == folder or folder in path.parents or path in folder.parents
