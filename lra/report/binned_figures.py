"""Draw accuracy in bins of the test set, one line per method: by length or by group."""

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lra.report.figure import describe, in_words, literal, look, panels
from lra.report.grid import Grid
from lra.report.lengths import Binned, by_group, by_length

# With more methods in a panel, bands would cover each other.
MAX_BANDS = 5


def accuracy_against_length(grid: Grid, title: str) -> Figure | None:
    """Draw accuracy in bins of length; return None if no record has it.

    Args:
        grid: The entries to draw.
        title: Title above the panels.
    """

    def dress(axis: Axes, each: Binned) -> list[float]:
        axis.set_xticks(range(len(each.edges)), each.names, rotation=35, ha="right")
        axis.set_xlabel("tokens of the longest sequence", fontsize=8)
        return [float(place) for place in range(len(each.edges))]

    return _drawn(grid, by_length(grid), title, dress)


def accuracy_against_group(grid: Grid, title: str) -> Figure | None:
    """Draw accuracy over the groups of examples, such as distances; return None if none has groups.

    Args:
        grid: The entries to draw.
        title: Title above the panels.
    """

    def dress(axis: Axes, each: Binned) -> list[float]:
        axis.set_xlabel(literal(each.quantity), fontsize=8)
        # The middle of each bin, in logarithms if the scale is logarithmic.
        if each.edges[0][0] <= 0:
            return [(low + high) / 2 for low, high in each.edges]
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        return [(low * high) ** 0.5 for low, high in each.edges]

    return _drawn(grid, by_group(grid), title, dress)


def _drawn(
    grid: Grid, found: list[Binned], title: str, dress: Callable[[Axes, Binned], list[float]]
) -> Figure | None:
    """Draw one panel per item of `found`; `dress` labels the axis and returns the bin positions."""
    if not found:
        return None
    methods = [m for each in found for m in each.correct]
    figure, axes = panels(len(found), grid, methods, lines=True)
    has_bands = max(len(each.correct) for each in found) <= MAX_BANDS
    for axis, each in zip(axes, found, strict=True):
        places = dress(axis, each)
        for method, shares in each.shares.items():
            looks, entry = look(grid, method), grid.entry(each.task, method)
            # Methods that learnt nothing are drawn behind those that did.
            if entry is not None and entry.at_chance:
                axis.plot(places, shares, lw=0.6, markersize=3, alpha=0.35, zorder=1, **looks)
                continue
            axis.plot(places, shares, lw=1, markersize=4, alpha=0.85, **looks)
            if has_bands:
                low, high = zip(*each.bands(method), strict=True)
                axis.fill_between(places, low, high, color=looks["color"], alpha=0.15, lw=0)
        if (majority := grid.majority_rate(each.task)) is not None:
            axis.axhline(majority, color="grey", linestyle="--", lw=1)
        axis.set_title(literal(grid.label(each.task)), fontsize=9)
    axes[0].set_ylabel("test accuracy, %", fontsize=8)
    parts = [
        in_words({count for each in found for count in each.seeds.values()}),
        *["bands: 95 % intervals for the size of the test set"] * has_bands,
        "dashed: majority class",
        "faint: at chance",
    ]
    describe(figure, title, "; ".join(parts))
    return figure
