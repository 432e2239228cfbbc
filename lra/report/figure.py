"""Shared parts of all pictures of a report: looks of methods, layout, legend and files."""

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lra.record import Method
from lra.report.grid import Entry, Grid
from lra.words import printable

# Colour-blind readers can distinguish them (Paul Tol's bright scheme); in grey, the markers differ.
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777", "#000000")
MARKERS = "os^DvPX<>*phd8H"
# One per cycle of the colours, so that lines of the same colour differ.
STYLES = ("-", "--", ":")
# Built-in backends in the order of their looks; a new one takes the next look.
BACKENDS = (
    "softmax", "fourier", "wavspa", "mra", "fourier_space", "mra_sparse", "linear", "nystromformer",
    "linformer", "longformer", "performer", "bigbird", "reformer", "s4d", "s5", "lru",
    "ema", "mega", "ssd", "gated_delta",
)  # fmt: skip
# In inches and points, chosen so that panels are readable at the width of a column.
PANEL, MAX_COLUMNS, FONT = (3.4, 3.0), 3, 8
# Characters of text per inch of width, and the height of a line of the legend in inches.
PER_INCH, LINE = 15, 0.19
LEGEND_LINE = 36


def look(grid: Grid, method: Method) -> dict[str, Any]:
    """Return the colour, marker and line style of a method; see `look_of`."""
    return look_of(str(method), [str(each) for each in grid.methods])


def look_of(name: str, names: Sequence[str]) -> dict[str, Any]:
    """Return the colour, marker and line style of a name, as keywords of `Axes.plot`.

    A built-in backend without a variant looks the same in every picture; variants and a user's own
    backends take the looks that follow, in the order of the names.

    Args:
        name: Name of the method to draw.
        names: All names that the picture may show.
    """
    others = [each for each in names if each not in BACKENDS]
    known = name in BACKENDS
    index = BACKENDS.index(name) if known else len(BACKENDS) + others.index(name)
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": STYLES[index // len(COLOURS) % len(STYLES)],
    }


def panels(
    count: int, grid: Grid, methods: Iterable[Method], *, lines: bool = False
) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` panels, at least one, in rows, and a legend below them.

    Args:
        count: Number of panels.
        grid: Grid that the methods belong to.
        methods: Methods drawn in any panel; the figure grows by the height of their names.
        lines: Whether lines are drawn, which the legend then shows beside the markers.
    """
    count = max(1, count)
    columns = min(count, MAX_COLUMNS)
    rows, width = -(-count // columns), max(PANEL[0] * columns, 4.5)
    found = [method for method in grid.methods if method in set(methods)]
    names = [_filled(grid.name(method)) for method in found]
    longest = max((len(line) for name in names for line in name.splitlines()), default=0)
    # A marker takes the space of some characters, and a line that of more.
    beside = max(1, min(len(found), int(width * PER_INCH) // (longest + (9 if lines else 6))))
    rows_of_text = sum(sorted((name.count("\n") + 1 for name in names), reverse=True)[::beside])
    height = PANEL[1] * rows + 0.6 + LINE * rows_of_text
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axis in axes[count:]:
        axis.remove()
    for axis in axes[:count]:
        axis.tick_params(labelsize=FONT - 1)
        axis.grid(alpha=0.25)
    looks = [look(grid, m) | ({} if lines else {"linestyle": "none"}) for m in found]
    handles = [Line2D([], [], lw=1, markersize=4 if lines else 6, **each) for each in looks]
    if found:
        figure.legend(
            handles,
            names,
            loc="outside lower center",
            ncols=beside,
            frameon=False,
            fontsize=FONT - 1,
            handlelength=4 if lines else 2,
        )
    return figure, axes[:count]


def _filled(name: str) -> str:
    """Return a name wrapped to the width of the legend."""
    return "\n".join(map(literal, textwrap.wrap(name, LEGEND_LINE)))


def describe(figure: Figure, title: str, caption: str) -> None:
    """Write a title above the panels, with the caption below the title."""
    width = int(figure.get_figwidth() * PER_INCH)
    lines = [*textwrap.wrap(literal(title), width), *textwrap.wrap(literal(caption), width)]
    figure.suptitle("\n".join(lines), fontsize=FONT)


def seeds(entries: Iterable[Entry]) -> str:
    """Return the number of seeds per entry as text."""
    counts = {len(entry.finished) for entry in entries if entry.finished}
    return in_words(counts) if counts else "no result"


def in_words(counts: set[int]) -> str:
    """Return numbers of seeds as text, as a range if they differ."""
    return "n = " + "–".join(str(each) for each in sorted({min(counts), max(counts)}))


def save(figure: Figure | None, file: Path) -> None:
    """Write a figure as SVG and PNG; the same records give the same bytes.

    Args:
        figure: The figure; if None, the files of an earlier figure are removed.
        file: Name of the files, without suffix.
    """
    if figure is None:
        for suffix in (".svg", ".png"):
            file.with_suffix(suffix).unlink(missing_ok=True)
        return
    with matplotlib.rc_context({"svg.hashsalt": "lra"}):
        # The files contain no date and no version.
        figure.savefig(file.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
        figure.savefig(file.with_suffix(".png"), dpi=140, metadata={"Software": None})


def literal(text: str) -> str:
    """Return a text that matplotlib can draw and does not parse as mathematics."""
    return printable(text).replace("$", r"\$")


def shortened(text: str, most: int = 22) -> str:
    """Return a name, shortened to its start if it is long; the legend shows all of it."""
    return text if len(text) <= most else text[: most - 1] + "…"


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return, sorted, the points that no other point equals or exceeds in both coordinates.

    Args:
        points: Pairs of coordinates; greater is better in both.
    """
    front: list[tuple[float, float]] = []
    for x, y in sorted(set(points), reverse=True):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front[::-1]
