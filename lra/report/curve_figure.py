"""Draw learning curves: validation accuracy over updates, with the seeds as a band."""

import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lra.record import Method, Record
from lra.report.figure import describe, in_words, literal, look, panels
from lra.report.grid import Entry, Grid
from lra.trajectory import TRAJECTORY, TrajectoryError, read_validations

Curve = Mapping[int, float]
Curves = Callable[[Record], Curve]

log = logging.getLogger(__name__)


def validated(folder: Path) -> Curves:
    """Return a function that reads the validations stored beside a record.

    Args:
        folder: Folder of the runs of a scale and protocol.

    Returns:
        A function that returns validation accuracy in percent by update; empty if none was kept.
    """

    # Called by both the picture and the page.
    @functools.cache
    def read(there: Path, step: int | None, accuracy: float | None) -> Curve:
        if not (there / TRAJECTORY).exists():
            return {}
        try:
            found = read_validations(there)
        except TrajectoryError as error:
            log.warning("left out: %s", error)
            return {}
        if found and found.get(step or 0) != accuracy:
            file, at = there / TRAJECTORY, f"{accuracy} at update {step}"
            log.warning("left out: %s: its validations lack that of its record, %s", file, at)
            return {}
        return {step: 100 * share for step, share in found.items()}

    return lambda record: read(
        folder.joinpath(*record.place), record.best_step, record.best_accuracy
    )


def learning_curves(grid: Grid, title: str, curves: Curves) -> Figure | None:
    """Draw validation accuracy over updates, one panel per task; None if there are no curves.

    Args:
        grid: The entries to draw.
        title: Title above the panels.
        curves: Returns the validations of a record.
    """
    found: dict[str, dict[Method, dict[int, list[float]]]] = {}
    counts: set[int] = set()
    without: list[str] = []
    for task in grid.tasks:
        for method, entry in grid.of(task).items():
            if points := _over_seeds(entry, curves):
                found.setdefault(task, {})[method] = points
                counts.add(len(next(iter(points.values()))))
            elif entry.finished:
                without.append(f"{grid.label(task)}/{grid.name(method)}")
    if not found:
        return None
    drawn = [method for rows in found.values() for method in rows]
    figure, axes = panels(len(found), grid, drawn, lines=True)
    for axis, (task, rows) in zip(axes, found.items(), strict=True):
        for method, points in rows.items():
            means = [sum(values) / len(values) for values in points.values()]
            style = look(grid, method)
            every = max(1, len(points) // 8)
            axis.plot([*points], means, lw=1, markersize=4, markevery=every, **style)
            low, high = ([pick(each) for each in points.values()] for pick in (min, max))
            axis.fill_between([*points], low, high, color=style["color"], alpha=0.15, lw=0)
        axis.set_title(literal(grid.label(task)), fontsize=9)
        axis.set_xlabel("updates", fontsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes[0].set_ylabel("validation accuracy, %", fontsize=8)
    caption = f"{in_words(counts)}; line: mean; band: lowest to highest seed"
    if without:
        caption += f"; no validations shown for {', '.join(without)}"
    describe(figure, title, caption)
    return figure


def _over_seeds(entry: Entry, curves: Curves) -> dict[int, list[float]]:
    """Return each seed's accuracy in percent by update, at the updates that all seeds share."""
    found = [curve for record in entry.finished if (curve := curves(record))]
    common = set.intersection(*map(set, found)) if found else set()
    return {step: [curve[step] for curve in found] for step in sorted(common)}
