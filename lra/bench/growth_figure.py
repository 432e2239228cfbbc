"""Draw time and memory against length, with the fitted powers of N at the ends of the lines."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from lra.bench.measured import MODES, Bench, Machine, Mode, Quantity
from lra.report.figure import FONT, PANEL, describe, literal, look_of, shortened

# Width of the names beside a panel and height of one of their lines, in inches.
BESIDE, LINE = 1.25, 0.125
# Where the lines to the names end and the names begin, in panel widths from its left edge.
MARKER_AT, NAME_AT = 1.06, 1.09
NAMES: dict[Quantity, str] = {
    "seconds": "seconds {a_step}",
    "peak_memory_bytes": "peak MiB {a_step}",
}
A_STEP = {"training": "per update", "inference": "per batch"}
UNITS: dict[Quantity, float] = {"seconds": 1.0, "peak_memory_bytes": 2.0**20}


class Name(NamedTuple):
    """A name beside a panel.

    Args:
        text: The text written.
        mark: The marker before it.
        end: Where its line ends, in data coordinates.
    """

    text: Text
    mark: Line2D
    end: tuple[float, float]


def growth_figure(machine: Machine, run: Bench) -> Figure | None:
    """Draw time and memory over length, training above inference; None without measurements.

    Args:
        machine: Machine that ran the bench.
        run: The measurements.
    """
    there = [name for name in run.attentions if any(run.of(name, mode) for mode in MODES)]
    if not there:
        return None
    height = max(PANEL[1], LINE * len(there) + 0.8)
    figure = Figure(
        figsize=(2 * (PANEL[0] + BESIDE), len(MODES) * height + 0.5), layout="constrained"
    )
    axes = figure.subplots(len(MODES), len(NAMES), squeeze=False)
    names: dict[Axes, list[Name]] = {}
    for row, mode in zip(axes, MODES, strict=True):
        for axis, quantity in zip(row, NAMES, strict=True):
            names[axis] = _panel(axis, run, there, mode, quantity)
            axis.set_title(f"{mode}: {NAMES[quantity].format(a_step=A_STEP[mode])}", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("tokens of a sequence", fontsize=FONT)
    describe(figure, "Time and memory against length", _caption(machine, run))
    figure.draw_without_rendering()
    for axis, found in names.items():
        _spread(axis, found)
    return figure


def _caption(machine: Machine, run: Bench) -> str:
    return (
        f"{machine.name}, {machine.processors} processors; {run.device}, threads: {run.threads},"
        f" {run.dtype}; model of {run.task} under {run.protocol}, batches of {run.batch_size}."
        " Points: medians; bars: quartiles; lines: best-fitting powers of N, labelled with their"
        " 95 % intervals"
    )


def _panel(
    axis: Axes, run: Bench, attentions: Sequence[str], mode: Mode, quantity: Quantity
) -> list[Name]:
    """Draw the points and lines of a panel; return the line names, which are yet to be placed."""
    axis.set_xscale("log")
    axis.set_yscale("log")
    unit, names = UNITS[quantity], []
    lasts: list[float] = []
    for attention in attentions:
        if not (cells := run.of(attention, mode)):
            continue
        # Hollow markers, so that none hides another.
        style = {**look_of(attention, attentions), "fillstyle": "none"}
        colour, of_line = style["color"], style.pop("linestyle")
        lengths = [cell.length for cell in cells]
        values = [cell.value(quantity) / unit for cell in cells]
        # Larger than the markers at the same place, as with equal memory.
        equal = sum(math.isclose(values[-1], last, rel_tol=0.02) for last in lasts)
        size = min(5 + 2.5 * equal, 20)
        lasts.append(values[-1])
        axis.plot(lengths, values, linestyle="none", markersize=size, markeredgewidth=1.1, **style)
        if quantity == "seconds":
            ends = zip(*(cell.quartiles for cell in cells), strict=True)
            axis.vlines(lengths, *ends, color=colour, lw=1)
        text, last = literal(shortened(attention)), values[-1]
        if (found := run.growth(attention, mode, quantity)) is not None:
            fitted = [found(length) / unit for length in (lengths[0], lengths[-1])]
            axis.plot(
                [lengths[0], lengths[-1]], fitted, color=colour, linestyle=of_line, lw=1, zorder=1
            )
            text, last = f"{text}  N^{found}", fitted[-1]
        names.append(_name(axis, text, (lengths[-1], last), style))
    _ticks(axis, run.lengths)
    return names


def _ticks(axis: Axes, lengths: Sequence[int]) -> None:
    axis.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.tick_params(labelsize=FONT - 1)
    if len(lengths) > 4:
        axis.tick_params(axis="x", rotation=35)
    axis.grid(alpha=0.25)
    axis.margins(x=0.06)


def _name(axis: Axes, text: str, end: tuple[float, float], style: dict[str, Any]) -> Name:
    """Write a name beside the panel, after the marker of its line."""
    place = axis.transAxes
    written = axis.text(NAME_AT, 0.5, text, transform=place, fontsize=FONT - 1.5, va="center")
    [mark] = axis.plot([MARKER_AT], [0.5], transform=place, clip_on=False, markersize=4, **style)
    mark.set_in_layout(False)
    return Name(written, mark, end)


def _spread(axis: Axes, names: Sequence[Name]) -> None:
    """Move names to the heights of their lines, but apart, and draw lines to them."""
    box, transform = axis.get_window_extent(), axis.transData
    # In fractions of the panel's height.
    ends = [(transform.transform(name.end)[1] - box.y0) / box.height for name in names]
    ends_x = [(transform.transform(name.end)[0] - box.x0) / box.width for name in names]
    line = LINE * axis.figure.figure.dpi / box.height
    order = sorted(range(len(names)), key=lambda k: ends[k])
    for index, height in zip(order, spread_places([ends[k] for k in order], line), strict=True):
        name, colour = names[index], names[index].mark.get_color()
        name.text.set_y(height)
        name.mark.set_ydata([height])
        [lead] = axis.plot(
            [ends_x[index], MARKER_AT - 0.015],
            [ends[index], height],
            transform=axis.transAxes,
            clip_on=False,
            color=colour,
            lw=0.5,
            linestyle=":",
        )
        lead.set_in_layout(False)


def spread_places(wanted: Sequence[float], least: float) -> list[float]:
    """Return positions between 0 and 1 close to those wanted, but at least `least` apart.

    The positions minimise squared distances under that condition: positions that would be too close
    form a group, placed at the mean of what its members want.

    Args:
        wanted: Wanted positions, ascending.
        least: Minimum distance between neighbours; if they do not fit, positions begin at 0.
    """
    # Per group: the sum of the positions that its members want for its first, and their number.
    groups: list[tuple[float, int]] = []
    room = max(0.0, 1 - (len(wanted) - 1) * least)
    for index, place in enumerate(wanted):
        below = index * least
        total, count = below + min(max(place - below, 0.0), room), 1
        while groups and groups[-1][0] / groups[-1][1] + least * groups[-1][1] > total / count:
            before, number = groups.pop()
            total, count = before + total - count * number * least, count + number
        groups.append((total, count))
    return [total / count + k * least for total, count in groups for k in range(count)]
