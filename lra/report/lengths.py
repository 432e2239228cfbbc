"""Break accuracy down by a property of examples that an average hides: length or group.

The breakdown shows whether a method fails on long sequences, or where the deciding token is far
away: a task may assign each example a group, such as a distance.
"""

from dataclasses import dataclass
from pathlib import Path

from lra.markdown import Table
from lra.record import Method, Record
from lra.report.grid import Grid
from lra.report.significance import wilson
from lra.report.tables import write_csv

Edges = tuple[tuple[int, int], ...]
TOKENS = "tokens"


@dataclass(frozen=True)
class Binned:
    """Accuracy on one task in bins of a property, for methods tested in the same bins.

    Args:
        task: Column of the grid.
        quantity: What is binned: `tokens`, or the task's name for its groups.
        edges: Smallest and largest value of each bin, ascending.
        totals: Number of examples in each bin.
        correct: Number of correct answers in each bin, summed over seeds.
        seeds: Number of seeds of each method.
    """

    task: str
    quantity: str
    edges: Edges
    totals: tuple[int, ...]
    correct: dict[Method, list[int]]
    seeds: dict[Method, int]

    @property
    def names(self) -> list[str]:
        """The bins as text."""
        return [f"{low}–{high}" if low < high else str(low) for low, high in self.edges]

    @property
    def shares(self) -> dict[Method, list[float]]:
        """Percentage of correct answers in each bin, over seeds."""
        return {
            method: [
                100 * right / (total * self.seeds[method])
                for right, total in zip(counts, self.totals, strict=True)
            ]
            for method, counts in self.correct.items()
        }

    def bands(self, method: Method) -> list[tuple[float, float]]:
        """Return the binomial interval of each bin's accuracy, in percent; see `wilson`.

        It is as wide as that of a single seed, since all seeds answer the same examples.
        """
        found = []
        for right, total in zip(self.correct[method], self.totals, strict=True):
            low, high = wilson(round(right / self.seeds[method]), total)
            found.append((100 * low, 100 * high))
        return found


def by_length(grid: Grid) -> list[Binned]:
    """Return accuracy by length for every task whose records have it, with methods in grid order.

    Records with different bins, such as those that read sequences up to another length, are kept
    apart.
    """
    return _binned(grid, "test_by_length")


def by_group(grid: Grid) -> list[Binned]:
    """Return accuracy by each task's groups of examples, in the form of `by_length`."""
    return _binned(grid, "test_by_group")


def _binned(grid: Grid, key: str) -> list[Binned]:
    found = []
    for task in grid.tasks:
        bins: dict[tuple[str, Edges, tuple[int, ...]], dict[Method, list[Record]]] = {}
        for method, entry in grid.of(task).items():
            for record in entry.finished:
                if getattr(record, key):
                    rows = bins.setdefault(_bins(record, key), {})
                    rows.setdefault(method, []).append(record)
        for (quantity, edges, totals), rows in sorted(bins.items(), key=lambda item: item[0]):
            correct = {method: _correct(records, key) for method, records in rows.items()}
            seeds = {method: len(records) for method, records in rows.items()}
            found.append(Binned(task, quantity, edges, totals, correct, seeds))
    return found


def length_table(grid: Grid, binned: Binned) -> Table:
    """Return accuracies in percent, methods by bins, with the examples of each bin below."""
    table = [["attention", *binned.names, "n"]]
    for method, shares in binned.shares.items():
        name = grid.name(method, binned.task)
        table.append([name, *(f"{share:.1f}" for share in shares), str(binned.seeds[method])])
    table.append(["(examples)", *(f"{total:,}" for total in binned.totals), ""])
    return table


def write_length_csv(file: Path, grid: Grid) -> None:
    """Write a line for each bin of each method; no file if no record has accuracy by length."""
    header = "task attention variant least_tokens most_tokens percent examples seeds"
    rows = [[each.task, *method, *ends] for each, method, ends in _lines(by_length(grid))]
    _write(file, header, rows)


def write_group_csv(file: Path, grid: Grid) -> None:
    """Write a line for each bin of each method; no file if no record has accuracy by group."""
    header = "task group attention variant least most percent examples seeds"
    rows = [
        [each.task, each.quantity, *method, *ends] for each, method, ends in _lines(by_group(grid))
    ]
    _write(file, header, rows)


def _lines(found: list[Binned]) -> list[tuple[Binned, Method, list[object]]]:
    return [
        (each, method, [*edge, round(share, 4), total, each.seeds[method]])
        for each in found
        for method, shares in each.shares.items()
        for edge, share, total in zip(each.edges, shares, each.totals, strict=True)
    ]


def _write(file: Path, header: str, rows: list[list[object]]) -> None:
    file.unlink(missing_ok=True)
    if rows:
        write_csv(file, header.split(), rows)


def _bins(record: Record, key: str) -> tuple[str, Edges, tuple[int, ...]]:
    bins = getattr(record, key)
    edges = tuple((each["least"], each["most"]) for each in bins)
    quantity = TOKENS if key == "test_by_length" else record.group
    return quantity, edges, tuple(each["total"] for each in bins)


def _correct(records: list[Record], key: str) -> list[int]:
    """Return the correct answers in each bin; all seeds are tested on the same examples."""
    columns = zip(*(getattr(record, key) for record in records), strict=True)
    return [sum(each["correct"] for each in column) for column in columns]
