"""The contract of a task, as checks that `lra.check my_file:MyTask` runs on a user's own task.

A task is a frozen dataclass whose fields are its options, as `lra.tasks.Task` says. A user's own
task also states `num_classes`, `num_symbols` (ids in use, padding included), `length` (of the
longest sequence) and, if it is not 1, `sequences` (per example) of its data. The data are built
twice, the second time in another process, where anything that depends on the order of a set
differs.

Every check is a function of a `TaskSubject`; the first line of its docstring is printed for it.
"""

import multiprocessing
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lra.config import ConfigError, bind
from lra.contract import BrokenError, SkippedError
from lra.custom import check_facts, load_task
from lra.tasks import DataError, Split, Task, cache, groups_of


@dataclass(frozen=True)
class TaskSubject:
    """A task with its options, and the data that it built.

    Args:
        task: The task.
        data: Its splits, as the cache holds them.
        again: The fingerprint of a second build.
    """

    task: Any
    data: cache.Dataset
    again: str

    @property
    def splits(self) -> Mapping[str, Split]:
        """The splits by name."""
        return self.data.splits


TaskCheck = Callable[[TaskSubject], None]


def make(path: str, options: dict[str, Any]) -> Task:
    """Return a user's own task with its options.

    Raises:
        ConfigError: There is no such task or option, or a value is out of range.
    """
    kind = load_task(path, "task")
    bound = bind(kind, options, "options")
    try:
        task = kind(**bound)
        check_facts(task, path)
    except ConfigError:
        raise
    except Exception as error:  # whatever the user's code raises
        name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ConfigError(f"{path}: {name}{error}") from error
    return task


def build(path: str, options: dict[str, Any], folder: Path, data_dir: Path | None) -> TaskSubject:
    """Build the data of a task twice.

    Args:
        path: Module and class.
        options: Its options.
        folder: An empty folder for the first build.
        data_dir: Folder of raw data, for tasks that read some.

    Raises:
        ConfigError: There is no such task or option, or a value is out of range.
        DataError: Its data cannot be built.
    """
    task = make(path, options)
    data = cache.load("checked", task, folder, data_dir)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        return TaskSubject(task, data, other.submit(_again, path, options, data_dir).result())


def _again(path: str, options: dict[str, Any], data_dir: Path | None) -> str:
    with TemporaryDirectory() as folder:
        return cache.load("checked", make(path, options), Path(folder), data_dir).fingerprint


def deterministic(subject: TaskSubject) -> None:
    """The same options give the same bytes, even in another process."""
    if subject.again != subject.data.fingerprint:
        raise BrokenError(
            "a second build differs; does it depend on time, chance or the order of a set?"
        )


def sizes_as_stated(subject: TaskSubject) -> None:
    """Every split has as many examples as `sizes` says."""
    for name, size in subject.task.sizes.items():
        found = len(subject.splits[name]) + subject.data.num_skipped[name]
        if found != size:
            raise BrokenError(f"{name} has {found:,} examples, but sizes[{name!r}] is {size:,}")


def labels_in_range(subject: TaskSubject) -> None:
    """Labels are 0 to `num_classes` - 1, and train and test have at least two of them."""
    for name, split in subject.splits.items():
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or high >= subject.task.num_classes:
            raise BrokenError(f"{name} has labels {low} to {high}, not within 0 to num_classes - 1")
        if name != "validation" and low == high:
            raise BrokenError(f"every label of {name} is {low}")


def symbols_in_range(subject: TaskSubject) -> None:
    """A symbol plus `id_shift` is less than `num_symbols`."""
    for name, split in subject.splits.items():
        largest = int(split.tokens.max()) + subject.task.id_shift
        if largest >= subject.task.num_symbols:
            raise BrokenError(
                f"{name} has id {largest}, but num_symbols is {subject.task.num_symbols}"
            )


def padding_is_apart(subject: TaskSubject) -> None:
    """No symbol gets id 0, which is padding."""
    if subject.task.id_shift == 0 and any(not s.tokens.all() for s in subject.splits.values()):
        raise SkippedError("symbol 0 gets it; with id_shift = 1, the two are distinct")


def lengths_in_range(subject: TaskSubject) -> None:
    """A sequence has at least one symbol and at most `length`."""
    for name, split in subject.splits.items():
        low, high = int(split.lengths.min()), int(split.lengths.max())
        if low < 1 or high > subject.task.length:
            wrong = f"lengths {low} to {high}, not within 1 to {subject.task.length}"
            raise BrokenError(f"{name} has {wrong}")


def sequences_as_stated(subject: TaskSubject) -> None:
    """Every example has as many sequences as `sequences` says, or 1 if it says nothing."""
    stated = getattr(subject.task, "sequences", 1)
    for name, split in subject.splits.items():
        if len(split.lengths) != stated * len(split):
            number = f"{len(split.lengths):,} sequences in {len(split):,} examples"
            raise BrokenError(f"{name} has {number}, should be {stated} each")


def groups_as_stated(subject: TaskSubject) -> None:
    """Groups, if a task has them, are one whole number per example, at least 0."""
    for split in subject.splits.values():
        try:
            groups_of(subject.task, split)
        except DataError as error:
            raise BrokenError(str(error)) from error


TASK_CHECKS: tuple[TaskCheck, ...] = (
    sizes_as_stated,
    sequences_as_stated,
    lengths_in_range,
    labels_in_range,
    symbols_in_range,
    padding_is_apart,
    groups_as_stated,
    deterministic,
)
