"""A stand-in for Pathfinder at the mini scale: small images with two paths, drawn by this project.

Four ends lie near the corners. Two winding paths, which never touch, join them along the rows or
along the columns. The end at the top left is marked, and either the one to its right or the one
below it; the label says whether a path joins them. Ends and marks are drawn independently of the
label, which only decides how the paths run, so the marks alone, including their places and
distance, reveal nothing. Then each image is worn: some hardly, and some until little but stray
pixels is left of its paths.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lra.tasks.stand_ins import Draws, Example, StandIn

PATH, MARKER = 128, 255
# In the most worn image, the shares of missing path pixels and of stray background pixels.
MAX_MISSING, MAX_STRAY = 0.9, 0.08


def _walk(draws: Draws, start: tuple[int, int], end: tuple[int, int], band: int) -> list[int]:
    """Return the rows of a path, one per column, from one `(row, column)` to another.

    The path moves by at most one row per column and stays above row `band`.
    """
    rows = [start[0]]
    for column in range(start[1] + 1, end[1] + 1):
        reach = end[1] - column
        low = max(rows[-1] - 1, 0, end[0] - reach)
        high = min(rows[-1] + 1, band - 1, end[0] + reach)
        rows.append(draws.between(low, high))
    return rows


def draw(draws: Draws, label: int, size: int) -> NDArray[np.uint8]:
    """Draw a `(size, size)` image of a label."""
    # There are always two rows between the two paths.
    band, near, far = (size - 2) // 2, size // 4, size - 1
    # Ends as distances from the top left, top right, bottom left and bottom right corners.
    ends = [(draws.between(0, near), draws.between(0, near)) for _ in range(4)]
    marked = draws.between(1, 2)
    along_rows = (marked == 1) == bool(label)
    if not along_rows:
        # Drawn along the rows and transposed at the end.
        ends = [(column, row) for row, column in (ends[0], ends[2], ends[1], ends[3])]
        marked = 3 - marked
    image = np.zeros((size, size), np.uint8)
    for corner, view in ((0, image), (2, image[::-1])):
        left, right = ends[corner], (ends[corner + 1][0], far - ends[corner + 1][1])
        rows = _walk(draws, left, right, band)
        view[rows, np.arange(left[1], right[1] + 1)] = PATH
        for place, end in ((corner, left), (corner + 1, right)):
            if place in (0, marked):
                view[end] = MARKER
    return image if along_rows else image.T


def wear(draws: Draws, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image with path pixels removed and stray pixels set; the marks stay."""
    degree = draws.share()
    numbers = np.array([draws.share() for _ in range(image.size)]).reshape(image.shape)
    worn = image.copy()
    worn[(image == PATH) & (numbers < MAX_MISSING * degree)] = 0
    worn[(image == 0) & (numbers < MAX_STRAY * degree)] = PATH
    return worn


@dataclass(frozen=True, kw_only=True)
class PathfinderStandIn(StandIn):
    """Options of the stand-in, in addition to those of `StandIn`.

    Args:
        size: Height and width in pixels.
    """

    version: ClassVar[int] = 2
    content: ClassVar[str] = "two winding paths in a small worn image"

    size: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 6 <= self.size <= 16:
            raise ValueError(f"task.options.size={self.size}: must be 6 to 16")

    def examples(self, split: str, count: int) -> Iterator[Example]:
        """Draw the images of a split; see `StandIn`."""
        draws = Draws(f"pathfinder stand-in/{self.data_seed}/{split}")
        for _ in range(count):
            label = draws.between(0, 1)
            yield label, (wear(draws, draw(draws, label, self.size)).tobytes(),)
