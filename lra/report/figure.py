"""The figure of a report: accuracy against training speed, one panel per task."""

from pathlib import Path

from lra.report.grid import Grid

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#000000")
MARKERS = "os^DvP*X"


def draw(grid: Grid, file: Path, title: str) -> None:
    """Draw accuracy against speed.

    Speed is the ratio to softmax where every entry of a task has one, else updates per second. The
    dashed line is the majority class; error bars are standard deviations over seeds.

    Args:
        grid: What is drawn.
        file: SVG (or PNG, by its suffix) to write.
        title: What is written above the panels.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = [task for task in grid.tasks if grid.of(task)]
    size = (3.0 * max(len(tasks), 1) + 1.6, 3.4)
    figure, axes = pyplot.subplots(1, max(len(tasks), 1), figsize=size, squeeze=False)
    handles = {}
    for axis, task in zip(axes[0], tasks, strict=False):
        ratios = {method: grid.speed_ratio(task, method) for method in grid.of(task)}
        relative = all(ratio is not None for ratio in ratios.values())
        for method, entry in grid.of(task).items():
            index = grid.methods.index(method)
            speed = ratios[method] if relative else entry.median("steps_per_second")
            handles[method] = axis.errorbar(
                speed,
                entry.mean,
                yerr=entry.deviation,
                fmt=MARKERS[index % len(MARKERS)],
                color=COLOURS[index % len(COLOURS)],
                markersize=8,
                capsize=3,
            )
        axis.axhline(grid.majority_rate(task), color="grey", linestyle="--", lw=1)
        axis.set_title(_literal(grid.label(task)))
        axis.set_xlabel("training speed, x softmax" if relative else "training steps/s")
        axis.margins(0.25)
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, 0), min(high, 104))
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("test accuracy, %")
    names = [_literal(grid.name(method)) for method in handles]
    figure.legend(handles.values(), names, loc="center right", frameon=False)
    figure.suptitle(_literal(f"{title} (dashed: majority class)"), fontsize=10)
    figure.tight_layout(rect=(0, 0, 1 - 1.5 / size[0], 1))
    # No date in the file: the same records give the same bytes.
    matplotlib.rcParams["svg.hashsalt"] = "lra"
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    pyplot.close(figure)


def _literal(text: str) -> str:
    """Return a text that matplotlib does not read as mathematics, and can draw."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return line.replace("$", r"\$")
