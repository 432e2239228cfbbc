"""Accuracy against what a task groups its examples by, such as a distance: a line a method."""

from matplotlib.figure import Figure

from lra.report.figure import describe, literal, look, panels, seeds
from lra.report.grid import Grid
from lra.report.lengths import Binned, by_group


def accuracy_against_group(grid: Grid, title: str) -> Figure | None:
    """Draw accuracy over what examples are grouped by; None where no record has it.

    Args:
        grid: What is drawn.
        title: What is written above the panels.
    """
    found = by_group(grid)
    if not found:
        return None
    figure, axes = panels(len(found), grid, [m for each in found for m in each.correct])
    for axis, each in zip(axes, found, strict=True):
        places = _middles(each)
        for method, shares in each.shares.items():
            looks, entry = look(grid, method), grid.entry(each.task, method)
            # What learnt nothing stays behind what did.
            if entry is not None and entry.at_chance:
                axis.plot(places, shares, lw=0.6, markersize=3, alpha=0.35, zorder=1, **looks)
                continue
            axis.plot(places, shares, lw=1, markersize=4, alpha=0.85, **looks)
            low, high = zip(*each.bands(method), strict=True)
            axis.fill_between(places, low, high, color=looks["color"], alpha=0.15, lw=0)
        if (majority := grid.majority_rate(each.task)) is not None:
            axis.axhline(majority, color="grey", linestyle="--", lw=1)
        if each.edges[0][0] > 0:
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:g}")
        axis.set_title(literal(grid.label(each.task)), fontsize=9)
        axis.set_xlabel(literal(each.what), fontsize=8)
    axes[0].set_ylabel("test accuracy, %", fontsize=8)
    caption = f"{seeds(grid)}; bands: binomial, 95 %; dashed: majority, faint: at chance"
    describe(figure, title, caption)
    return figure


def _middles(binned: Binned) -> list[float]:
    """Return where the bins are drawn: in the middle, on a logarithmic scale where there is one."""
    if binned.edges[0][0] > 0:
        return [(low * high) ** 0.5 for low, high in binned.edges]
    return [(low + high) / 2 for low, high in binned.edges]
