"""Shared parts of the stand-ins: this project's own data, the same bytes for a seed anywhere.

A stand-in takes a task's place at the mini scale, where nothing is read or fetched. Its random
numbers are raw generator output, since NumPy's distributions may change between versions.
"""

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lra.tasks import Source, Writer, check_counts

# The numbers of all images of a split are drawn at once.
MAX_EXAMPLES = 10**6

Example = tuple[int, tuple[bytes, ...]]


def _seed(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big")


def uniform(key: str, count: int, width: int) -> NDArray[np.float64]:
    """Return `(count, width)` numbers in [0, 1) from the stream `key` of raw PCG64 words."""
    words = np.random.PCG64(_seed(key)).random_raw(count * width)
    return (words >> np.uint64(11)).astype(np.float64).reshape(count, width) * 2.0**-53


def below(bound: int, key: str, count: int, width: int) -> NDArray[np.uint16]:
    """Return `(count, width)` whole numbers below `bound`, at most 256, from the stream `key`.

    Each is made from 16 bits, so that none is more than 1/256 more likely than another. This takes
    a quarter of the words that `uniform` takes.
    """
    words = np.random.PCG64(_seed(key)).random_raw(-(-count * width // 4))
    parts = words.astype("<u8").view("<u2")[: count * width].astype(np.uint32)
    return (parts * np.uint32(bound) >> np.uint32(16)).astype(np.uint16).reshape(count, width)


class Draws:
    """Random choices of the stream `key`, all from `random.Random.random()`."""

    def __init__(self, key: str) -> None:
        self._uniform = random.Random(_seed(key)).random

    def share(self) -> float:
        """Return a number in [0, 1)."""
        return self._uniform()

    def between(self, low: int, high: int) -> int:
        """Return a whole number from `low` to `high`, both included."""
        return low + int(self._uniform() * (high - low + 1))

    def letter(self, letters: str) -> str:
        """Return one of the letters."""
        return letters[self.between(0, len(letters) - 1)]

    def subset(self, size: int, low: int, high: int) -> set[int]:
        """Return `size` different whole numbers from `low` to `high`."""
        chosen: set[int] = set()
        while len(chosen) < size:
            chosen.add(self.between(low, high))
        return chosen


@dataclass(frozen=True, kw_only=True)
class StandIn(ABC):
    """Options of every stand-in.

    Args:
        num_train: Training examples.
        num_validation: Validation examples.
        num_test: Test examples.
        data_seed: Seed of the generator.
    """

    version: ClassVar[int] = 1
    id_shift: ClassVar[int] = 0
    # Description of the data for people.
    content: ClassVar[str]

    num_train: int = 20_000
    num_validation: int = 500
    num_test: int = 2_000
    data_seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, ("num_train", "num_validation", "num_test"), most=MAX_EXAMPLES)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples of each split."""
        return {
            "train": self.num_train,
            "validation": self.num_validation,
            "test": self.num_test,
        }

    def locate(self, data_dir: Path | None) -> Source:
        """Return a stand-in source, since the examples are drawn and nothing is read."""
        return Source("stand-in", f"{self.content}, seed {self.data_seed}")

    def write(self, source: Source, splits: Mapping[str, Writer]) -> None:
        """Write every split; see `lra.tasks.Task`."""
        for name, count in self.sizes.items():
            for label, sequences in self.examples(name, count):
                splits[name].add(label, *sequences)

    @abstractmethod
    def examples(self, split: str, count: int) -> Iterator[Example]:
        """Draw the examples of a split: labels with their sequences."""
