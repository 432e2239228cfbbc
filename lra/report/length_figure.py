"""Accuracy by length: a line for each method, a panel for each task whose lengths vary."""

from matplotlib.figure import Figure

from lra.report.figure import describe, literal, look, panels, seeds
from lra.report.grid import Grid
from lra.report.lengths import by_length


def accuracy_against_length(grid: Grid, title: str) -> Figure | None:
    """Draw accuracy in the bins of length; None where no record has it.

    Args:
        grid: What is drawn.
        title: What is written above the panels.
    """
    found = by_length(grid)
    if not found:
        return None
    figure, axes = panels(len(found), grid, [m for each in found for m in each.shares])
    for axis, each in zip(axes, found, strict=True):
        places = range(len(each.edges))
        for method, shares in each.shares.items():
            axis.plot(places, shares, lw=1, markersize=4, alpha=0.85, **look(grid, method))
        if (majority := grid.majority_rate(each.task)) is not None:
            axis.axhline(majority, color="grey", linestyle="--", lw=1)
        axis.set_xticks(places, each.names, rotation=35, ha="right")
        axis.set_title(literal(grid.label(each.task)), fontsize=9)
        axis.set_xlabel("tokens of the longest sequence", fontsize=8)
    axes[0].set_ylabel("test accuracy, %", fontsize=8)
    caption = f"{seeds(grid)}; bins of equal numbers of examples; dashed: majority class"
    describe(figure, title, caption)
    return figure
