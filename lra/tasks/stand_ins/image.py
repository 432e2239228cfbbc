"""A stand-in for Image at the mini scale: ten classes of grey patterns, drawn by this project.

Every image is a permutation of the same pixels, in which each of 16 grey levels occurs equally
often, so the histogram reveals nothing about the class: only the positions of the levels do.
Position, phase and scale vary within a class, and everything is covered by noise.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lra.tasks.stand_ins import Example, StandIn, uniform

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
# As many pixels as the longest task of the benchmark has.
MAX_SIDE = 128
# Width of the noise, as a share of a pattern's own range.
NOISE = 0.55


def _triangle(phase: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the triangle wave of period 1, from 0 up to 1 and down, the same bits anywhere."""
    return 1 - np.abs(2 * (phase - np.floor(phase)) - 1)


def draw(kinds: NDArray[np.int64], numbers: NDArray[np.float64], side: int) -> NDArray[np.uint8]:
    """Draw images.

    Args:
        kinds: `(num_images,)` classes 0 to 9.
        numbers: `(num_images, 5 + side * side)` numbers in [0, 1).
        side: Height and width in pixels; a multiple of 4.

    Returns:
        `(num_images, side * side)` bytes, row by row.
    """
    grid = np.arange(side) / side
    row, column = (axis[None] for axis in np.meshgrid(grid, grid, indexing="ij"))
    scale, phase, y, x, width = numbers[:, :5].T[..., None, None]
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
    # Draw every pattern for every image, and keep that of its class.
    stack = np.stack([np.broadcast_to(p, (len(kinds), side, side)) for p in patterns])
    values = stack[kinds, np.arange(len(kinds))].reshape(len(kinds), -1)
    spread = values.max(1, keepdims=True) - values.min(1, keepdims=True)
    values = values + NOISE * spread * (numbers[:, 5:] - 0.5)
    ranks = values.argsort(1, kind="stable").argsort(1, kind="stable")
    levels: NDArray[np.int64] = ranks * LEVELS // (side * side)
    return (levels * (256 // LEVELS) + 128 // LEVELS).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class ImageStandIn(StandIn):
    """Options of the stand-in, in addition to those of `StandIn`.

    Args:
        side: Height and width in pixels.
    """

    version: ClassVar[int] = 2
    content: ClassVar[str] = "procedural patterns under noise"

    side: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 4 <= self.side <= MAX_SIDE or self.side % 4:
            raise ValueError(
                f"task.options.side={self.side}: must be a multiple of 4, at most {MAX_SIDE}"
            )

    def examples(self, split: str, count: int) -> Iterator[Example]:
        """Draw the images of a split; see `StandIn`."""
        key = f"image stand-in/{self.data_seed}/{split}"
        numbers = uniform(key, count, 6 + self.side * self.side)
        labels = (numbers[:, 0] * len(CLASSES)).astype(np.int64)
        for start in range(0, count, 1_000):
            part = slice(start, start + 1_000)
            images = draw(labels[part], numbers[part, 1:], self.side)
            for label, pixels in zip(labels[part], images, strict=True):
                yield int(label), (pixels.tobytes(),)
