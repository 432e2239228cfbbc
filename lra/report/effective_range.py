"""Compute the effective range: how far accuracy holds as the value that groups examples grows.

Starting at the bin in which a method is best and moving towards greater values, find the last bin
before the first one whose accuracy is below nine tenths of that best; the range is the greatest
value of that bin. If a task groups by distance, this is the largest distance up to which accuracy
stays above nine tenths of its own best. A method at chance has no effective range.

The interval comes from a bootstrap over test examples: examples are drawn with replacement, seeds
together, and the range is determined again; the bins stay the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lra.markdown import Table
from lra.predictions import Predictions
from lra.record import Method
from lra.report.grid import Grid
from lra.report.lengths import Binned, by_group, length_table
from lra.report.significance import LEVEL
from lra.report.standing import Answers

SHARE = 0.9
REPLICATES = 1_000
# Accuracy in bins, with its table.
GroupTables = Sequence[tuple[Binned, Table]]


@dataclass(frozen=True)
class Range:
    """An effective range.

    Args:
        value: The greatest value up to which accuracy holds.
        interval: Bootstrap interval; None if predictions are not stored.
    """

    value: int
    interval: tuple[int, int] | None = None

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.value:,}"
        low, high = self.interval
        return f"{self.value:,} ({low:,}–{high:,})"


def last_bin(shares: Sequence[float] | NDArray[np.float64]) -> int:
    """Return the last bin, from the best one on, up to which accuracy is above `SHARE` of it.

    Args:
        shares: Accuracy of each bin.
    """
    accuracy = np.asarray(shares, dtype=float)
    best = int(accuracy.argmax())
    # Ties hold, whatever rounding makes of them.
    below = accuracy[best:] < SHARE * accuracy[best] * (1 - 1e-9)
    return best + int(below.argmax()) - 1 if below.any() else len(accuracy) - 1


def effective_ranges(grid: Grid, binned: Binned, answers: Answers) -> dict[Method, Range]:
    """Return the effective range of every method that is not at chance.

    Args:
        grid: The entries.
        binned: Accuracy in bins of the value that groups examples.
        answers: Returns the test predictions of a record, or None if there are none.
    """
    found = {}
    for method, shares in binned.shares.items():
        entry = grid.entry(binned.task, method)
        if entry is None or entry.at_chance:
            continue
        interval = _interval(grid, binned, method, answers)
        found[method] = Range(binned.edges[last_bin(shares)][1], interval)
    return found


def _interval(
    grid: Grid, binned: Binned, method: Method, answers: Answers
) -> tuple[int, int] | None:
    entry = grid.entry(binned.task, method)
    assert entry is not None
    edges = [most for _, most in binned.edges]
    found: list[Predictions] = []
    for record in entry.finished:
        bins = tuple((each["least"], each["most"]) for each in record.test_by_group)
        if bins != binned.edges:
            continue
        stored = answers(record)
        if stored is None or stored.groups is None or int(stored.groups.max()) > edges[-1]:
            return None
        found.append(stored)
    groups = found[0].groups
    assert groups is not None
    if any(not np.array_equal(groups, each.groups) for each in found if each.groups is not None):
        return None
    right = np.sum([each.right for each in found], 0)
    return bootstrap(np.searchsorted(edges, groups), right, edges)


def bootstrap(
    places: NDArray[np.integer], right: NDArray[Any], edges: Sequence[int]
) -> tuple[int, int]:
    """Return the `1 - LEVEL` interval of an effective range, from draws with a fixed seed.

    Args:
        places: `(B,)`, the bin of each example.
        right: `(B,)`, the number of correct answers to each example, over seeds.
        edges: The greatest value of each bin.
    """
    rng = np.random.default_rng(0)
    number, ends = len(places), np.empty(REPLICATES, np.int64)
    for replicate in range(REPLICATES):
        drawn = rng.integers(0, number, number)
        totals = np.bincount(places[drawn], minlength=len(edges))
        correct = np.bincount(places[drawn], right[drawn], minlength=len(edges))
        ends[replicate] = edges[last_bin(correct / np.maximum(totals, 1))]
    low, high = np.quantile(ends, [LEVEL / 2, 1 - LEVEL / 2], method="inverted_cdf")
    return int(low), int(high)


def group_table(grid: Grid, binned: Binned, answers: Answers) -> Table:
    """Return accuracies in percent, methods by bins, with the effective range of each method."""
    ranges = effective_ranges(grid, binned, answers)
    header, *rows, examples = length_table(grid, binned)
    texts = [str(ranges.get(method, "none")) for method in binned.shares]
    table = [[*header, "effective range"]]
    table += [[*row, text] for row, text in zip(rows, texts, strict=True)]
    return [*table, [*examples, ""]]


def group_tables(grid: Grid, answers: Answers) -> GroupTables:
    """Return the table of every task that groups its examples, as by `group_table`."""
    return [(binned, group_table(grid, binned, answers)) for binned in by_group(grid)]
