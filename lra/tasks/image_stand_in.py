"""A stand-in for Image at the mini scale: ten classes of grey patterns, drawn by this project.

Every image is a permutation of the same pixels, each of 16 grey levels occurring equally often,
so that its histogram says nothing about its class: only where the levels stand does. Position,
phase and scale vary within a class, and noise lies over everything.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lra.tasks import Source, Writer

CLASSES = (
    "horizontal stripes",
    "vertical stripes",
    "diagonal stripes",
    "counter-diagonal stripes",
    "checkerboard",
    "blob",
    "ring",
    "vertical ramp",
    "horizontal ramp",
    "cross",
)
LEVELS = 16


def _uniform(seed: int, split: str, count: int, width: int) -> NDArray[np.float64]:
    """Return `(count, width)` numbers in [0, 1) from raw 64-bit words of a seeded PCG64."""
    digest = hashlib.sha256(f"image stand-in/{seed}/{split}".encode()).digest()
    words = np.random.PCG64(int.from_bytes(digest[:16], "big")).random_raw(count * width)
    return (words >> np.uint64(11)).astype(np.float64).reshape(count, width) * 2.0**-53


def _triangle(phase: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the triangle wave of period 1: 0 up to 1 and down, the same bits anywhere."""
    return 1 - np.abs(2 * (phase - np.floor(phase)) - 1)


def draw(kinds: NDArray[np.int64], uniform: NDArray[np.float64], side: int) -> NDArray[np.uint8]:
    """Draw images.

    Args:
        kinds: `(num_images,)` classes 0 to 9.
        uniform: `(num_images, 5 + side * side)` numbers in [0, 1).
        side: Height and width in pixels; a multiple of 4.

    Returns:
        `(num_images, side * side)` bytes, row by row.
    """
    grid = np.arange(side) / side
    row, column = (axis[None] for axis in np.meshgrid(grid, grid, indexing="ij"))
    scale, phase, y, x, width = uniform[:, :5].T[..., None, None]
    # A class keeps its phase within a quarter of a period, and its size within a tenth.
    cycles, phase, width = 2.5 + 0.25 * scale, 0.25 * phase, 0.25 * width
    dy, dx = row - (0.4 + 0.2 * y), column - (0.4 + 0.2 * x)
    distance = np.sqrt(dy * dy + dx * dx)
    patterns = [
        _triangle(cycles * row + phase + 0 * column),
        _triangle(cycles * column + phase + 0 * row),
        _triangle(cycles * (row + column) / 2 + phase),
        _triangle(cycles * (row - column) / 2 + phase),
        np.abs(_triangle(cycles * row + phase) - _triangle(cycles * column + width)),
        -distance,
        -np.abs(distance - (0.25 + 0.1 * width)),
        row + 0.3 * (phase - 0.5) * column,
        column + 0.3 * (phase - 0.5) * row,
        -np.minimum(np.abs(dy), np.abs(dx)),
    ]
    # Every pattern is drawn for every image and the one of its class kept.
    stack = np.stack([np.broadcast_to(p, (len(kinds), side, side)) for p in patterns])
    values = stack[kinds, np.arange(len(kinds))].reshape(len(kinds), -1)
    # Noise as wide as 40 % of the pattern's own range.
    spread = values.max(1, keepdims=True) - values.min(1, keepdims=True)
    values = values + 0.4 * spread * (uniform[:, 5:] - 0.5)
    ranks = values.argsort(1, kind="stable").argsort(1, kind="stable")
    levels: NDArray[np.int64] = ranks * LEVELS // (side * side)
    return (levels * (256 // LEVELS) + 128 // LEVELS).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class ImageStandIn:
    """Options of the stand-in.

    Args:
        num_train: Training images.
        num_validation: Validation images.
        num_test: Test images.
        side: Height and width in pixels.
        data_seed: Seed of the generator.
    """

    version: ClassVar[int] = 1
    id_shift: ClassVar[int] = 0

    num_train: int = 20_000
    num_validation: int = 500
    num_test: int = 2_000
    side: int = 16
    data_seed: int = 0

    def __post_init__(self) -> None:
        for key in ("num_train", "num_validation", "num_test"):
            if (count := getattr(self, key)) < 1:
                raise ValueError(f"task.options.{key}={count}: must be at least 1")
        if self.side < 4 or self.side % 4:
            raise ValueError(f"task.options.side={self.side}: must be a multiple of 4")

    def locate(self, data_dir: Path | None) -> Source:
        """Nothing is read: the images are drawn."""
        return Source("stand-in", f"procedural patterns, seed {self.data_seed}")

    def write(self, source: Source, splits: Mapping[str, Writer]) -> None:
        """Write every split; see `lra.tasks.Task`."""
        sizes = {
            "train": self.num_train,
            "validation": self.num_validation,
            "test": self.num_test,
        }
        for name, count in sizes.items():
            uniform = _uniform(self.data_seed, name, count, 6 + self.side * self.side)
            labels = (uniform[:, 0] * len(CLASSES)).astype(np.int64)
            for start in range(0, count, 1_000):
                part = slice(start, start + 1_000)
                images = draw(labels[part], uniform[part, 1:], self.side)
                for label, pixels in zip(labels[part], images, strict=True):
                    splits[name].add(int(label), pixels)
