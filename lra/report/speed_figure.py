"""Draw accuracy against speed with memory as area, the picture of the Long Range Arena paper."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lra.record import Method
from lra.report.figure import describe, literal, look, panels, pareto, seeds
from lra.report.figure import shortened as short
from lra.report.grid import Grid, measured_alike
from lra.report.labels import place_labels

# Areas of the smallest and the largest marker, in square points.
MIN_AREA, MAX_AREA = 25.0, 260.0


def accuracy_against_speed(grid: Grid, title: str) -> Figure:
    """Draw accuracy against training speed, one panel per task.

    Speed is the ratio to softmax if every entry of a task has one, else updates per second, without
    a Pareto front if the speeds are not comparable. The dashed line is the majority class, error
    bars are standard deviations over seeds, and hollow markers indicate unsteady speeds.

    Args:
        grid: The entries to draw.
        title: Title above the panels.
    """
    tasks = [task for task in grid.tasks if grid.of(task)]
    figure, axes = panels(len(tasks), grid, [m for task in tasks for m in grid.of(task)])
    shown = {task: _points(grid, task, axis) for task, axis in zip(tasks, axes, strict=False)}
    for axis in axes[:: min(3, len(axes))]:
        axis.set_ylabel("test accuracy, %", fontsize=8)
    drawn = [entry for task in tasks for entry in grid.of(task).values()]
    fronts = {task: _front(grid, task, points) for task, points in shown.items()}
    parts = [
        seeds(drawn),
        "marker area: peak memory relative to the largest in the panel",
        "hollow: unsteady speed",
        *["thin line: Pareto front"] * any(len(front) > 1 for front in fronts.values()),
        *["bars: standard deviation"] * any(entry.deviation is not None for entry in drawn),
        "dashed: majority class",
    ]
    describe(figure, title, "; ".join(parts))
    figure.draw_without_rendering()
    for (task, points), axis in zip(shown.items(), axes, strict=False):
        names = [literal(short(grid.name(method, task))) for method in points]
        place = [(x, y) for x, y, _ in points.values()]
        areas = [area for _, _, area in points.values()]
        lines = []
        if front := fronts[task]:
            axis.plot(*zip(*front, strict=True), color="0.35", lw=0.8, zorder=1)
            lines.append(front)
        if (majority := grid.majority_rate(task)) is not None:
            lines.append([(end, majority) for end in axis.get_xlim()])
        place_labels(axis, place, areas, names, lines)
    return figure


def _points(grid: Grid, task: str, axis: Axes) -> dict[Method, tuple[float, float, float]]:
    """Draw a panel; return the speed, accuracy and marker area of each method in it."""
    entries = grid.of(task)
    ratios = _ratios(grid, task)
    most = max(entry.peak_memory for entry in entries.values()) or 1
    points = {}
    for method, entry in entries.items():
        speed = ratios[method] if ratios else entry.median("steps_per_second")
        area = MIN_AREA + (MAX_AREA - MIN_AREA) * entry.peak_memory / most
        points[method] = (speed, entry.mean or 0.0, area)
    # Large markers first, so that none is hidden.
    for method in sorted(points, key=lambda each: -points[each][2]):
        x, y, area = points[method]
        style = look(grid, method)
        if (deviation := entries[method].deviation) is not None:
            axis.errorbar(x, y, deviation, color=style["color"], lw=0.8, capsize=2, zorder=2)
        face = "none" if entries[method].unsteady else (style["color"], 0.45)
        axis.scatter(
            x, y, area, marker=style["marker"], color=face, edgecolor=style["color"], zorder=3
        )
    if (majority := grid.majority_rate(task)) is not None:
        axis.axhline(majority, color="grey", linestyle="--", lw=1, zorder=1)
    axis.set_title(literal(grid.label(task)), fontsize=9)
    alike = measured_alike(entries.values())
    steps = "training steps/s" if alike else "training steps/s, not all measured alike"
    axis.set_xlabel("training speed, x softmax" if ratios else steps, fontsize=8)
    axis.margins(0.22)
    low, high = axis.get_ylim()
    axis.set_ylim(max(low, 0), min(high, 104))
    return points


def _ratios(grid: Grid, task: str) -> dict[Method, float]:
    """Return the speed of every method over softmax's; empty unless all of them have one."""
    found = {method: grid.speed_ratio(task, method) for method in grid.of(task)}
    there = {method: ratio for method, ratio in found.items() if ratio is not None}
    return there if len(there) == len(found) else {}


def _front(
    grid: Grid, task: str, points: Mapping[Method, tuple[float, float, float]]
) -> list[tuple[float, float]]:
    """Return the Pareto front of a panel; empty if its speeds are not comparable."""
    if not _ratios(grid, task) and not measured_alike(grid.of(task).values()):
        return []
    return pareto([(x, y) for x, y, _ in points.values()])
