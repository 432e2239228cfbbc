"""Draw a map of tasks by backends: by how many points each differs from softmax."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lra.record import Method
from lra.report.figure import FONT, describe, in_words, literal
from lra.report.grid import Grid
from lra.report.standing import Answers, compared


def heat_map(grid: Grid, title: str, answers: Answers = lambda record: None) -> Figure | None:
    """Draw the differences from softmax; return None if nothing can be compared.

    Args:
        grid: The entries to draw.
        title: Title above the map.
        answers: Returns the test predictions of a record, for the tests of the differences.
    """
    bases = {task: base for task in grid.tasks if (base := grid.baseline(task))}
    tasks = [*bases]
    methods = [
        method
        for method in grid.methods
        if any(method in grid.of(task) and method != base for task, base in bases.items())
    ]
    if not methods:
        return None
    values, texts = _differences(grid, tasks, methods, answers)
    figure = Figure(
        figsize=(1.1 * len(tasks) + 2.8, 0.27 * len(methods) + 1.7), layout="constrained"
    )
    axis = figure.subplots()
    # Two hues that colour-blind readers can distinguish; in grey, the numbers say the same.
    most = max(float(np.nanmax(np.abs(values))), 0.1) if not np.isnan(values).all() else 0.1
    image = axis.imshow(values, cmap="PuOr", vmin=-most, vmax=most, aspect="auto")
    for (row, column), text in texts.items():
        red, green, blue, _ = image.cmap(image.norm(np.nan_to_num(values[row, column])))
        # Brightness as people perceive it.
        colour = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
        axis.text(column, row, text, ha="center", va="center", fontsize=FONT - 1, color=colour)
    labels = [literal(_folded(grid.name(method))) for method in methods]
    axis.set_yticks(range(len(methods)), labels, fontsize=FONT - 1)
    names = [literal(grid.label(task)) for task in tasks]
    axis.set_xticks(range(len(tasks)), names, rotation=25, ha="right", fontsize=FONT - 1)
    bar = figure.colorbar(image, ax=axis)
    bar.set_label("points above softmax", fontsize=FONT - 1)
    bar.ax.tick_params(labelsize=FONT - 1)
    shared = _shared(grid, tasks, methods)
    parts = [
        *[in_words(shared)] * bool(shared),
        "test accuracy minus softmax's, over the seeds that both have",
        "in brackets: no significant difference",
        *["?: not tested, two seeds or none in common"]
        * any(text.endswith("?") for text in texts.values()),
    ]
    describe(figure, title, "; ".join(parts))
    return figure


def _shared(grid: Grid, tasks: Sequence[str], methods: Sequence[Method]) -> set[int]:
    """Return the numbers of seeds that the differences are of."""
    counts = set()
    for task in tasks:
        base = grid.baseline(task)
        for method in methods:
            entry = grid.of(task).get(method)
            if base is None or entry is None or method == base:
                continue
            counts.add(len(entry.seeds & grid.of(task)[base].seeds))
    return counts - {0}


def _differences(
    grid: Grid, tasks: Sequence[str], methods: Sequence[Method], answers: Answers
) -> tuple[NDArray[np.float64], dict[tuple[int, int], str]]:
    """Return points above softmax, methods by tasks, as numbers (NaN without a result) and text."""
    values = np.full((len(methods), len(tasks)), np.nan)
    texts: dict[tuple[int, int], str] = {}
    for row, method in enumerate(methods):
        for column, task in enumerate(tasks):
            base = grid.baseline(task)
            assert base is not None, task
            entry, baseline = grid.of(task).get(method), grid.of(task)[base]
            if entry is None or entry.mean is None or baseline.mean is None:
                texts[row, column] = "failed" if grid.entry(task, method) else "missing"
                continue
            difference = values[row, column] = entry.above(baseline)
            # Adding 0 makes a zero of a negative one.
            text = f"{round(difference, 1) + 0.0:+.1f}"
            better = compared(baseline, entry, answers).better
            is_tested = better is not None or method == base
            texts[row, column] = f"{text} ?" if not is_tested else text if better else f"({text})"
    return values, texts


def _folded(name: str, most: int = 32) -> str:
    """Return a name, without its middle if it is long: both ends are the most informative."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most // 2 - 1) :]}"
