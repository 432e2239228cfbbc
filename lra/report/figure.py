"""What all pictures of a report share: looks of methods, layout, legend and files."""

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lra.record import Method
from lra.report.grid import Grid
from lra.words import printable

# Told apart by the colour-blind (Paul Tol's bright scheme), and in grey by their markers.
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777", "#000000")
MARKERS = "os^DvPX<>*phd8H"
# One for each cycle of the colours, so that lines of one colour differ.
STYLES = ("-", "--", ":")
# Those built in, in the order of their looks; that of a new one is the next.
BACKENDS = (
    "softmax", "fourier", "wavspa", "mra", "fourier_space", "mra_sparse", "linear", "nystromformer",
    "linformer", "longformer", "performer", "bigbird", "reformer", "s4d", "s5", "lru",
    "ema", "mega", "ssd", "gated_delta",
)  # fmt: skip
# Inches and points: panels are readable at the width of a column.
PANEL, MOST_COLUMNS, FONT = (3.4, 3.0), 3, 8
# Characters of a line of text per inch of width, and inches of a line of the legend.
PER_INCH, LINE = 15, 0.19
LEGEND_LINE = 36


def look(grid: Grid, method: Method) -> dict[str, Any]:
    """Return colour, marker and style of line of a method; see `look_of`."""
    return look_of(str(method), [str(each) for each in grid.methods])


def look_of(name: str, names: Sequence[str]) -> dict[str, Any]:
    """Return colour, marker and style of line of a name, as keywords of `Axes.plot`.

    A built-in backend by itself has the same in every picture; variants and backends of a user's
    own have those after, in the order of the names.

    Args:
        name: What is drawn.
        names: All that the picture may show.
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
    """Return a figure and as many panels, at least one, in rows of a few, with names below them.

    Args:
        count: Number of panels.
        grid: The methods are its.
        methods: What is drawn in any of them; the figure grows by what their names take.
        lines: Whether it is lines that are drawn, which names then show beside markers.
    """
    count = max(1, count)
    columns = min(count, MOST_COLUMNS)
    rows, width = -(-count // columns), max(PANEL[0] * columns, 4.5)
    found = [method for method in grid.methods if method in set(methods)]
    names = [_filled(grid.name(method)) for method in found]
    longest = max((len(line) for name in names for line in name.splitlines()), default=0)
    # A marker takes the room of some characters, and a line of more.
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
    """Return a name in lines of a few words, as a legend has room for."""
    return "\n".join(map(literal, textwrap.wrap(name, LEGEND_LINE)))


def describe(figure: Figure, title: str, caption: str) -> None:
    """Write a title, and below it the caption, above the panels."""
    width = int(figure.get_figwidth() * PER_INCH)
    lines = [*textwrap.wrap(literal(title), width), *textwrap.wrap(literal(caption), width)]
    figure.suptitle("\n".join(lines), fontsize=FONT)


def seeds(grid: Grid) -> str:
    """Return how many seeds entries have, in words."""
    counts = {len(entry.finished) for entry in grid.entries.values() if entry.finished}
    return in_words(counts) if counts else "no result"


def in_words(counts: set[int]) -> str:
    """Return numbers of seeds in words, their range where they differ."""
    return "n = " + "–".join(str(each) for each in sorted({min(counts), max(counts)}))


def save(figure: Figure | None, file: Path) -> None:
    """Write a figure as SVG and as PNG; the same records give the same bytes.

    Args:
        figure: The figure; where it is None, one of earlier records is removed.
        file: Their name, without suffix.
    """
    if figure is None:
        for suffix in (".svg", ".png"):
            file.with_suffix(suffix).unlink(missing_ok=True)
        return
    with matplotlib.rc_context({"svg.hashsalt": "lra"}):
        # No date and no version in the files.
        figure.savefig(file.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
        figure.savefig(file.with_suffix(".png"), dpi=160, metadata={"Software": None})


def literal(text: str) -> str:
    """Return a text that matplotlib does not read as mathematics, and can draw."""
    return printable(text).replace("$", r"\$")


def shortened(text: str, most: int = 22) -> str:
    """Return the start of a long name; the legend has the whole."""
    return text if len(text) <= most else text[: most - 1] + "…"


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other is at least as good as in both coordinates, sorted.

    Args:
        points: Pairs of which more is better.
    """
    front: list[tuple[float, float]] = []
    for x, y in sorted(set(points), reverse=True):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front[::-1]
