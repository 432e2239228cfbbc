"""Lay out the learning curve of an entry, with one line per seed."""

from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from lra.report.curve_figure import Curve

# Size of the drawing and its margins, in its own units.
WIDTH, HEIGHT, LEFT, BOTTOM, RIM = 640, 240, 48, 36, 12


@dataclass(frozen=True)
class Drawing:
    """A learning curve as the page draws it.

    Args:
        lines: Each seed with the corners of its line.
        across: Positions of the ticks for updates, with their labels.
        up: Positions of the ticks for percent, with their labels.
        summary: Description of the lines as text.
    """

    lines: list[tuple[int, str]]
    across: list[tuple[float, str]]
    up: list[tuple[float, str]]
    summary: list[str]


def draw(curves: Mapping[int, Curve]) -> Drawing | None:
    """Return the drawing of each seed's accuracy by update; None if there are no points."""
    found = {seed: sorted(curve.items()) for seed, curve in curves.items() if curve}
    if not found:
        return None
    points = [point for line in found.values() for point in line]
    steps, shares = ([point[axis] for point in points] for axis in (0, 1))
    last = max(steps)
    low, high = min(shares), max(shares)
    ticks = [float(t) for t in MaxNLocator(5).tick_values(low, max(high, low + 1))]
    low, high = ticks[0], ticks[-1]

    def x(step: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIM) * step / max(last, 1), 1)

    def y(share: float) -> float:
        return round(RIM + (HEIGHT - BOTTOM - RIM) * (high - share) / (high - low), 1)

    across = [float(t) for t in MaxNLocator(5, integer=True).tick_values(0, last)]
    summary = []
    for seed, line in found.items():
        best = max(line, key=lambda point: (point[1], -point[0]))
        summary.append(
            f"Seed {seed}: {line[0][1]:.1f} % at update {line[0][0]:,}, best {best[1]:.1f} % at"
            f" update {best[0]:,}, last {line[-1][1]:.1f} % at update {line[-1][0]:,}."
        )
    return Drawing(
        [(seed, " ".join(f"{x(a)},{y(b)}" for a, b in line)) for seed, line in found.items()],
        [(x(t), f"{t:,.0f}") for t in across if 0 <= t <= last],
        [(y(t), f"{t:g}") for t in ticks],
        summary,
    )
