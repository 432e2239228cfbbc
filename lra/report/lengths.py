"""Accuracy by length: whether a method fails where sequences are long, which an average hides."""

from dataclasses import dataclass
from pathlib import Path

from lra.markdown import Table
from lra.record import Method, Record
from lra.report.grid import Grid
from lra.report.tables import write_csv

Edges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Lengths:
    """Accuracy by length on one task, of methods that were tested in the same bins.

    Args:
        task: Column of the grid.
        edges: Least and most tokens of each bin.
        totals: Examples of each bin.
        shares: Percent right in each bin, over seeds.
        seeds: Number of seeds of each method.
    """

    task: str
    edges: Edges
    totals: tuple[int, ...]
    shares: dict[Method, list[float]]
    seeds: dict[Method, int]

    @property
    def names(self) -> list[str]:
        """The bins in words, in tokens."""
        return [f"{low}–{high}" if low < high else str(low) for low, high in self.edges]


def by_length(grid: Grid) -> list[Lengths]:
    """Return accuracy by length of every task whose records have it, methods as in the grid.

    Records of other bins, such as those that read sequences to another length, are kept apart.
    """
    found = []
    for task in grid.tasks:
        bins: dict[tuple[Edges, tuple[int, ...]], dict[Method, list[Record]]] = {}
        for method, entry in grid.of(task).items():
            for record in entry.finished:
                if record.test_by_length:
                    rows = bins.setdefault(_bins(record), {})
                    rows.setdefault(method, []).append(record)
        for (edges, totals), rows in sorted(bins.items(), key=lambda item: item[0]):
            shares = {method: _shares(records) for method, records in rows.items()}
            seeds = {method: len(records) for method, records in rows.items()}
            found.append(Lengths(task, edges, totals, shares, seeds))
    return found


def length_table(grid: Grid, lengths: Lengths) -> Table:
    """Return methods by bins, in percent, with the examples of each bin below."""
    table = [["attention", *lengths.names, "n"]]
    for method, shares in lengths.shares.items():
        name = grid.name(method, lengths.task)
        table.append([name, *(f"{share:.1f}" for share in shares), str(lengths.seeds[method])])
    table.append(["(examples)", *(f"{total:,}" for total in lengths.totals), ""])
    return table


def write_length_csv(file: Path, grid: Grid) -> None:
    """Write a line for each bin of each method; no file where no record has accuracy by length."""
    rows: list[list[object]] = []
    for each in by_length(grid):
        for method, shares in each.shares.items():
            for edge, share, total in zip(each.edges, shares, each.totals, strict=True):
                ends = [round(share, 4), total, each.seeds[method]]
                rows.append([each.task, *method, *edge, *ends])
    file.unlink(missing_ok=True)
    if rows:
        header = "task attention variant least_tokens most_tokens percent examples seeds"
        write_csv(file, header.split(), rows)


def _bins(record: Record) -> tuple[Edges, tuple[int, ...]]:
    bins = record.test_by_length
    edges = tuple((each["least"], each["most"]) for each in bins)
    return edges, tuple(each["total"] for each in bins)


def _shares(records: list[Record]) -> list[float]:
    """Return percent right in each bin; seeds are tested on the same examples."""
    columns = zip(*(record.test_by_length for record in records), strict=True)
    return [
        100 * sum(each["correct"] for each in column) / sum(each["total"] for each in column)
        for column in columns
    ]
