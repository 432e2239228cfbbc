"""Place names at the points of a panel so that they avoid each other and the markers."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox

from lra.report.figure import FONT

# Positions tried around a point: distances from the rim of its marker, in points, and directions.
DISTANCES, DIRECTIONS = (3, 9, 16, 24, 34, 46), 16


def place_labels(
    axis: Axes,
    points: Sequence[tuple[float, float]],
    areas: Sequence[float],
    names: Sequence[str],
    lines: Sequence[Sequence[tuple[float, float]]],
) -> None:
    """Write each name near its point where it covers least, with a thin line if it is far away.

    The layout must be final, because sizes are read from it.

    Args:
        axis: Panel in which the points are drawn.
        points: Data coordinates of the points.
        areas: Areas of the markers, in square points.
        names: The names, escaped for matplotlib.
        lines: Corners, in data coordinates, of lines that must not be covered either.
    """
    canvas: Any = FigureCanvasAgg(axis.figure.figure)
    renderer, unit = canvas.get_renderer(), axis.figure.figure.dpi / 72
    centres = [tuple(axis.transData.transform(point)) for point in points]
    # Diamonds and triangles reach further than their area suggests.
    radii = [unit * 1.2 * math.sqrt(area) / 2 for area in areas]
    markers = [
        Bbox.from_extents(x - r, y - r, x + r, y + r)
        for (x, y), r in zip(centres, radii, strict=True)
    ]
    for line in lines:
        markers += _beads([axis.transData.transform(point) for point in line], 4 * unit)
    inside, taken = axis.get_window_extent(renderer), list[Bbox]()
    for index in sorted(range(len(points)), key=lambda k: centres[k]):
        label = axis.annotate(
            names[index],
            points[index],
            (0, 0),
            textcoords="offset points",
            fontsize=FONT - 1.5,
            ha="center",
            va="center",
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "0.4", "shrinkA": 0, "shrinkB": 0},
            zorder=5,
        )
        label.set_in_layout(False)
        size = label.get_window_extent(renderer)
        offset, box, distance = _place(
            centres[index], radii[index], size, unit, taken + markers, inside
        )
        label.set_position((offset[0] / unit, offset[1] / unit))
        if distance == DISTANCES[0] and label.arrow_patch is not None:
            label.arrow_patch.set_visible(False)
        taken.append(box)


def _place(
    centre: tuple[float, float],
    radius: float,
    size: Bbox,
    unit: float,
    taken: Sequence[Bbox],
    inside: Bbox,
) -> tuple[tuple[float, float], Bbox, float]:
    """Return where a name covers least: its offset from a point, its box, and its distance.

    Args:
        centre: The point, in pixels.
        radius: Radius of its marker.
        size: Box as large as the name.
        unit: Pixels per point of typography.
        taken: Boxes that should stay visible.
        inside: The panel.
    """
    tried = []
    for distance, direction in itertools.product(DISTANCES, range(DIRECTIONS)):
        angle = 2 * math.pi * direction / DIRECTIONS
        reach = radius + unit * distance
        # The distance is to the rim of the text, not to its middle.
        dx = math.cos(angle) * (reach + size.width / 2)
        dy = math.sin(angle) * (reach + size.height / 2)
        box = Bbox.from_bounds(
            centre[0] + dx - size.width / 2,
            centre[1] + dy - size.height / 2,
            size.width,
            size.height,
        )
        hidden = sum(_overlap(box, other) for other in taken)
        outside = size.width * size.height - _overlap(box, inside)
        cost = (20 * (hidden + outside) + unit * distance, direction)
        tried.append((cost, (dx, dy), box, distance))
    _, offset, box, found = min(tried, key=lambda each: each[0])
    return offset, box, found


def _beads(corners: Sequence[Any], size: float) -> list[Bbox]:
    """Return boxes of the given size along a line."""
    beads = []
    for start, end in zip(corners, corners[1:], strict=False):
        count = max(1, int(math.dist(start, end) / size))
        for k in range(count):
            x, y = start + (end - start) * k / count
            beads.append(Bbox.from_bounds(x - size / 2, y - size / 2, size, size))
    return beads


def _overlap(first: Bbox, second: Bbox) -> float:
    width = min(first.x1, second.x1) - max(first.x0, second.x0)
    height = min(first.y1, second.y1) - max(first.y0, second.y0)
    return float(max(0.0, width) * max(0.0, height))
