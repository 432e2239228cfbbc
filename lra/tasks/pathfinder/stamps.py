"""Draw the paddles and markers of Pathfinder images once, as small stamps of bytes.

A paddle's line starts in the middle of its stamp, on a canvas of twice the size, and is shrunk with
Pillow's Lanczos filter. Pillow 10 to 13 give the same bytes; `tables` verifies them by a checksum,
so that a different drawing cannot change the data unnoticed.
"""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lra.tasks.pathfinder.rules import ANTIALIAS, Rules
from lra.tasks.pathfinder.trigonometry import cosine, sine

Bytes = NDArray[np.uint8]

# Lanczos reads three output pixels on either side; one more for the disk's rim.
FILTER_REACH = 4


def disk_offsets(radius: int) -> list[tuple[int, int]]:
    """List the integer offsets (y, x) no farther than `radius` from the origin."""
    span = range(-radius, radius + 1)
    return [(y, x) for y in span for x in span if y * y + x * x <= radius * radius]


def dilate(image: Bytes, radius: int) -> Bytes:
    """Take the maximum over a disk around every pixel; pixels outside the image count as 0."""
    height, width = image.shape
    padded = np.pad(image, radius)
    dilated = np.zeros_like(image)
    for y, x in disk_offsets(radius):
        window = padded[radius + y : radius + y + height, radius + x : radius + x + width]
        np.maximum(dilated, window, out=dilated)
    return dilated


def shrink(image: Bytes) -> Bytes:
    """Shrink an image of bytes with Lanczos; a canvas of 2n - 1 pixels per side gives n."""
    side = (image.shape[0] + 1) // ANTIALIAS
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS))


def line_end(rules: Rules, margin: int, orientation: float) -> tuple[int, int]:
    """Return the far end (y, x) of a paddle's line on its double-sized canvas."""
    middle = (rules.stamp_radius + margin) * ANTIALIAS
    length = float(rules.paddle_length * ANTIALIAS)
    return (
        math.ceil(middle + length * sine(orientation)),
        math.ceil(middle + length * cosine(orientation)),
    )


def draw_paddle(rules: Rules, margin: int, end: tuple[int, int]) -> tuple[Bytes, Bytes]:
    """Draw one paddle and the mask that keeps others away.

    Args:
        rules: The image size's parameters.
        margin: Space around the paddle, in pixels of the final image.
        end: Far end of the line, from `line_end`.

    Returns:
        Line and mask, both `(2 r + 1, 2 r + 1)` with r = `rules.stamp_radius + margin`. The mask
        is the line dilated by the margin before shrinking.
    """
    middle = (rules.stamp_radius + margin) * ANTIALIAS
    canvas = Image.new("L", (2 * middle + 1, 2 * middle + 1))
    ImageDraw.Draw(canvas).line(
        [(middle, middle), (end[1], end[0])],
        fill=255,
        width=round(rules.paddle_thickness * ANTIALIAS),
    )
    line = np.asarray(canvas)
    return shrink(line), shrink(dilate(line, margin * ANTIALIAS))


def marker_reach(rules: Rules) -> tuple[int, int]:
    """Return a marker stamp's radius, and the distance from the border within which it varies."""
    radius = math.ceil(rules.marker_radius) + FILTER_REACH
    return radius, radius + FILTER_REACH


def draw_markers(rules: Rules) -> NDArray[np.uint8]:
    """Draw the marker for every place that gives a different stamp.

    Near the border the filter has fewer pixels to read, so the stamp depends on the distances to
    the borders, up to `border` of `marker_reach`. Class k of a coordinate stands for k pixels from
    the low border or 2 border - k pixels from the high border, and k = border for everything in
    between.

    Returns:
        `(2 border + 1, 2 border + 1, 2 radius + 1, 2 radius + 1)`: class of y, class of x, stamp.
    """
    radius, border = marker_reach(rules)
    side = 2 * border + 1
    fine = np.arange(side * ANTIALIAS)
    stamps = np.zeros((side, side, 2 * radius + 1, 2 * radius + 1), np.uint8)
    for y in range(side):
        for x in range(side):
            distance = (fine[:, None] - y * ANTIALIAS) ** 2 + (fine - x * ANTIALIAS) ** 2
            disk = distance <= (rules.marker_radius * ANTIALIAS) ** 2
            marker = np.pad(shrink(disk.astype(np.uint8) * 255), radius)
            stamps[y, x] = marker[y : y + 2 * radius + 1, x : x + 2 * radius + 1]
    return stamps
