"""Define tasks, and the splits and sources of their data.

A task is one file with one frozen dataclass: its fields are its options, `locate` says where the
data come from, and `write` reads them into the cache. `lra.tasks.cache.load` ties the two together.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "validation", "test")


OnBadRow = Literal["error", "skip"]
# More would fill any disk, and nobody could seriously want them.
MAX_EXAMPLES = 10**8


class DataError(RuntimeError):
    """Raised if raw data are missing, damaged or not what they should be."""


@dataclass(frozen=True)
class Split:
    """The sequences and labels of a split.

    Args:
        tokens: `(num_tokens,)` uint8, all sequences one after the other.
        offsets: `(num_sequences + 1,)` int64; sequence i is `tokens[offsets[i]:offsets[i + 1]]`.
        labels: `(num_examples,)` int64; an example has `num_sequences / num_examples` sequences,
            in order.
    """

    tokens: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Length of every sequence, `(num_sequences,)`."""
        return np.diff(self.offsets)

    @property
    def majority_rate(self) -> float:
        """Share of the most frequent label: the accuracy of always guessing it."""
        return float(np.bincount(self.labels).max() / len(self))


@dataclass(frozen=True)
class Source:
    """Where a task's data come from.

    Args:
        kind: `published` (the benchmark's own data), `generated` (by the benchmark's algorithm),
            `other` (real data of the same form, comparable with no published figure) or
            `stand-in` (procedural data of this project).
        description: The same as text, without paths, since it is recorded.
        files: The raw files to read, by role; empty if nothing is read.
        signature: Changes if different raw data are found, so that they get their own cache.
        place: Where the data were found or searched for, for messages on this machine.
    """

    kind: Literal["published", "generated", "other", "stand-in"]
    description: str
    files: tuple[Path, ...] = ()
    signature: str = ""
    place: str = ""

    def __str__(self) -> str:
        return f"{self.description}, {self.place}" if self.place else self.description


def file_signature(files: Iterable[Path]) -> str:
    """Return paths, sizes and modification times of files as a `Source.signature`."""
    return " ".join(
        f"{file.absolute()}:{s.st_size}:{s.st_mtime_ns}"
        for file, s in ((file, file.stat()) for file in files)
    )


def check_counts(task: Any, keys: Iterable[str], least: int = 1, most: int = MAX_EXAMPLES) -> None:
    """Reject numbers of examples that are too small or absurdly large.

    Args:
        task: A task with such options.
        keys: Names of the options.
        least: The smallest number allowed.
        most: The largest number allowed.

    Raises:
        ValueError: A number is out of range.
    """
    for key in keys:
        if not least <= (count := getattr(task, key)) <= most:
            bound = f"at least {least}" if count < least else f"at most {most:,}"
            raise ValueError(f"task.options.{key}={count}: must be {bound}")


class Writer(Protocol):
    """Receives the examples of one split, in order."""

    def add(self, label: int, *sequences: bytes | NDArray[np.uint8]) -> None:
        """Append one example."""

    def skip(self, reason: str) -> None:
        """Count a row that is left out, and report why."""


def bad_row(reason: str, split: Writer, on_bad_row: OnBadRow) -> None:
    """Stop at a malformed row, or leave it out if that was requested.

    Args:
        reason: File, line or index, and what is wrong with it.
        split: Where the row would have gone.
        on_bad_row: `error` or `skip`.

    Raises:
        DataError: `on_bad_row` is `error`.
    """
    if on_bad_row == "error":
        raise DataError(f"{reason}; task.options.on_bad_row=skip leaves such rows out")
    split.skip(reason)


@dataclass(frozen=True)
class Groups:
    """The values that a task groups examples by, so that accuracy can be reported by them.

    Args:
        name: What the values mean, such as `distance, in tokens`.
        values: `(num_examples,)`, at least 0.
    """

    name: str
    values: NDArray[np.int64]


def groups_of(task: Any, split: Split) -> Groups | None:
    """Return the values that a task groups the examples of a split by; None if it has none.

    Args:
        task: A task that may have a method `groups`, which maps a split to one number per example,
            and an attribute `group`, which names them.
        split: A split of its data.

    Raises:
        DataError: The task does not return one whole number per example, at least 0.
    """
    if not callable(find := getattr(task, "groups", None)):
        return None
    found = np.asarray(find(split))
    if found.shape != (len(split),) or found.dtype.kind not in "iu" or found.min() < 0:
        least = f", the least {found.min()}" if found.size and found.dtype.kind in "iuf" else ""
        raise DataError(
            f"{type(task).__name__}.groups returns {found.dtype} of shape {found.shape}{least};"
            f" must be whole numbers of shape ({len(split)},), at least 0"
        )
    return Groups(str(getattr(task, "group", "group")), found.astype(np.int64))


class Task(Protocol):
    """A task; implementations are frozen dataclasses whose fields are the options.

    A task may also have `groups` and `group`; see `groups_of`. If it stores more or less of a
    sequence than is read, `bytes_per_sequence` says how many bytes, for the plan.

    Attributes:
        version: Increased whenever the same options produce different data than before.
        id_shift: Added to a stored symbol to get its token id; id 0 is padding.
    """

    version: ClassVar[int]
    id_shift: ClassVar[int]

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples in each split; if published data are read, the published numbers."""

    def locate(self, data_dir: Path | None) -> Source:
        """Find the raw data without reading them; raise `DataError` if there are none."""

    def write(self, source: Source, splits: Mapping[str, Writer]) -> Source | None:
        """Read or generate every example of the splits `train`, `validation` and `test`.

        Returns:
            The source as its content turned out, such as `other` if files that claim to be the
            published ones are not; None if it is what it was said to be.
        """
