"""Parameters of the Pathfinder images of the Long Range Arena, one record per image size.

They are those of the benchmark's data builders (lra_benchmarks/data/pathfinder.py) for the public
generator of Linsley et al. (2018, "Learning long-range spatial dependencies with horizontal
gated recurrent units", arXiv 1805.08315; github.com/drewlinsley/pathfinder, snakes2.py).
"""

import math
from dataclasses import dataclass

# Every image is drawn at twice its size and then shrunk.
ANTIALIAS = 2

# The published lengths are 6 (easy), 9 (intermediate) and 14 (hard), on which the Long Range Arena
# trains. A distractor has a third of a contour's paddles, so below 3 there would be none.
CONTOUR_LENGTHS = range(3, 15)


@dataclass(frozen=True)
class Rules:
    """How images of one size are drawn; lengths in pixels of the final image.

    Args:
        size: Side of the image.
        padding: Width of the border that no paddle may enter.
        seed_distance: Distance between the two contours' first tails; twice this keeps them away
            from the border.
        marker_radius: Radius of the disks that mark two ends.
        distractor_paddles: Total number of paddles in all distractors, before rounding down to
            whole distractors.
        paddle_length: Length of a paddle.
        paddle_thickness: Width of a paddle.
        margins: Space around a paddle; each image draws one of these.
        continuity: How straight contours are; the factor for the angle between two paddles.
        target_contrast: Value of the two contours' paddles.
        distractor_contrast: Value of the distractors' paddles; markers have the value 1.
    """

    size: int
    padding: int
    seed_distance: int
    marker_radius: float
    distractor_paddles: int
    paddle_length: int
    paddle_thickness: float
    margins: tuple[int, ...]
    continuity: float
    target_contrast: float
    distractor_contrast: float

    @property
    def stamp_radius(self) -> int:
        """Pixels from the middle of a paddle's stamp, where its line starts, to the rim."""
        return self.paddle_length + math.ceil(self.paddle_thickness)

    def num_distractors(self, contour_length: int) -> int:
        """Return how many distractors are tried beside contours of `contour_length` paddles."""
        return self.distractor_paddles // distractor_length(contour_length)


def distractor_length(contour_length: int) -> int:
    """Return the number of paddles of a distractor beside contours of `contour_length`."""
    return contour_length // 3


RULES = {
    32: Rules(32, 1, 7, 1.5, 20, 2, 0.5, (1,), 1.0, 1.5, 2.0),
    64: Rules(64, 1, 12, 2.5, 22, 5, 1.0, (1,), 1.8, 0.8, 0.8),
    128: Rules(128, 1, 20, 3.0, 35, 5, 1.5, (2, 3), 1.8, 0.9, 0.9),
    256: Rules(256, 22, 27, 5.0, 30, 5, 2.0, (3,), 1.8, 1.0, 1.0),
}
