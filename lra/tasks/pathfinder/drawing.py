"""Draw Pathfinder images from the paths that `growth` grew.

Overlapping paddles and markers are combined by the maximum of their values, and each image is
stretched to bytes by its own extremes. So at size 32, where distractors have a higher value than
contours, a contour looks darker beside a distractor. `t` is a record of `layout.TABLES`.
"""

import numpy as np
from numpy.typing import NDArray

from lra.tasks.pathfinder.compiled import compiled

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@compiled
def draw_paddles(t: np.record, path: Ints, values: Floats, canvas: Floats) -> None:
    """Draw the paddles of a path `(length, 3)` by the pixelwise maximum."""
    width = 2 * t.reach + 1
    for paddle in range(len(path)):
        line = t.line[path[paddle, 0]]
        top, left = path[paddle, 1] - t.reach, path[paddle, 2] - t.reach
        for y in range(max(0, -top), min(width, t.size - top)):
            for x in range(max(0, -left), min(width, t.size - left)):
                value = values[line[y, x]]
                canvas[top + y, left + x] = max(canvas[top + y, left + x], value)


@compiled
def border_class(t: np.record, place: int) -> int:
    """Return the class of a coordinate by its distances to the borders; see `draw_markers`."""
    border = int(t.marker_border)
    return min(place, border) + max(0, border - (t.size - 1 - place))


@compiled
def draw_marker(t: np.record, y: int, x: int, canvas: Floats) -> None:
    """Draw a marker about (y, x) by the pixelwise maximum."""
    stamp = t.marker[border_class(t, y), border_class(t, x)]
    top, left, width = y - t.marker_radius, x - t.marker_radius, 2 * t.marker_radius + 1
    for row in range(max(0, -top), min(width, t.size - top)):
        for column in range(max(0, -left), min(width, t.size - left)):
            value = t.marker_value[stamp[row, column]]
            canvas[top + row, left + column] = max(canvas[top + row, left + column], value)


@compiled
def stretch(canvas: Floats, image: Bytes) -> None:
    """Map the canvas linearly to bytes, its least value to 0 and its greatest to 255."""
    least, greatest = canvas.min(), canvas.max()
    scale = 255.0 / (greatest - least)
    for y in range(canvas.shape[0]):
        for x in range(canvas.shape[1]):
            image[y, x] = np.uint8(min((canvas[y, x] - least) * scale, 255.0) + 0.5)


@compiled
def draw_image(t: np.record, targets: Ints, distractors: Ints, ends: Ints, image: Bytes) -> None:
    """Draw an image, where `ends` `(2, 3)` are the marked paddles."""
    canvas = np.zeros(image.shape)
    for path in targets:
        draw_paddles(t, path, t.target_value, canvas)
    for path in distractors:
        draw_paddles(t, path, t.distractor_value, canvas)
    for end in ends:
        draw_marker(t, end[1], end[2], canvas)
    stretch(canvas, image)


@compiled
def draw_images(
    records: NDArray[np.void],
    margins: Ints,
    placed: Ints,
    targets: Ints,
    distractors: Ints,
    ends: Ints,
    images: Bytes,
) -> None:
    """Draw images from paths, whose paddles are (stamp, y, x).

    Args:
        records: `(M,)`, one record of tables per margin.
        margins: `(n,)`, the index of each image's record.
        placed: `(n,)`, the number of its distractors.
        targets: `(n, 2, length, 3)`, the paddles of its contours.
        distractors: `(n, num, length, 3)`, the paddles of its distractors, in the first `placed`
            rows.
        ends: `(n, 2, 3)`, its marked paddles.
        images: `(n, size, size)`, receives the images.
    """
    for index in range(len(images)):
        t = records[margins[index]]
        shorts = distractors[index, : placed[index]]
        draw_image(t, targets[index], shorts, ends[index], images[index])
