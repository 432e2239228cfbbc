"""The figure of a report: accuracy against training speed, one panel a task."""

from pathlib import Path

from lra.grid import BASELINE, Cell, Grid, Row, median_speed, speed_ratio

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#000000")
MARKERS = "os^DvP*X"


def draw(grid: Grid, file: Path, title: str) -> None:
    """Draw accuracy against speed.

    Speed is the ratio to softmax where every cell of a task has one, else updates a second. The
    dashed line is the majority class; error bars are standard deviations over seeds.

    Args:
        grid: Cells.
        file: SVG (or PNG, by its suffix) to write.
        title: What stands above the panels.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = [task for task in grid.tasks if any(c.finished for c in _cells(grid, task).values())]
    size = (3.0 * max(len(tasks), 1) + 1.6, 3.4)
    figure, axes = pyplot.subplots(1, max(len(tasks), 1), figsize=size, squeeze=False)
    handles = {}
    for axis, task in zip(axes[0], tasks, strict=False):
        cells = {row: cell for row, cell in _cells(grid, task).items() if cell.finished}
        baseline = grid.cell(task, (BASELINE, "default"))
        ratios = {row: speed_ratio(cell, baseline) for row, cell in cells.items()}
        relative = all(ratio is not None for ratio in ratios.values())
        for row, cell in cells.items():
            index = grid.rows.index(row)
            speed = ratios[row] if relative else median_speed(cell, "steps_per_second")
            handles[row] = axis.errorbar(
                speed,
                cell.mean,
                yerr=cell.deviation,
                fmt=MARKERS[index % len(MARKERS)],
                color=COLOURS[index % len(COLOURS)],
                markersize=8,
                capsize=3,
            )
        axis.axhline(next(iter(cells.values())).majority_rate, color="grey", linestyle="--", lw=1)
        axis.set_title(grid.label(task))
        axis.set_xlabel("training speed, x softmax" if relative else "training steps/s")
        axis.margins(0.25)
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, 0), min(high, 104))
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("test accuracy, %")
    labels = [" ".join(row) if row[1] != "default" else row[0] for row in handles]
    figure.legend(handles.values(), labels, loc="center right", frameon=False)
    figure.suptitle(f"{title} (dashed: majority class)", fontsize=10)
    figure.tight_layout(rect=(0, 0, 1 - 1.5 / size[0], 1))
    # No date in the file: the same records give the same bytes.
    matplotlib.rcParams["svg.hashsalt"] = "lra"
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    pyplot.close(figure)


def _cells(grid: Grid, task: str) -> dict[Row, Cell]:
    return {row: cell for row in grid.rows if (cell := grid.cell(task, row)) is not None}
