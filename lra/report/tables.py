"""The tables of a report: of what was measured and of published figures, as Markdown and CSV."""

import csv
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lra.markdown import Table
from lra.paths import PUBLISHED
from lra.record import Method
from lra.report.grid import BASELINE, Entry, Grid

Value = str | int | float | None
# A speed whose quartiles are further apart than this share of it is marked.
MOST_SPREAD, MARK = 0.2, "(!)"


@dataclass(frozen=True)
class Column:
    """A column of a table of entries.

    Args:
        title: Its title for people.
        key: Its title in CSV.
        value: What CSV holds, of a grid, task and method whose entry has a result; None is empty.
        text: What people read, made from the value.
        doubtful: Whether people are told by a mark not to rely on it.
    """

    title: str
    key: str
    value: Callable[[Grid, str, Method, Entry], Value]
    text: Callable[[Value], str] = str
    doubtful: Callable[[Grid, str, Method, Entry], bool] = lambda *which: False

    def shown(self, grid: Grid, task: str, method: Method, entry: Entry) -> str:
        """Return what people read, with its mark."""
        text = self.text(self.value(grid, task, method, entry))
        return f"{text} {MARK}" if text and self.doubtful(grid, task, method, entry) else text


def _rounded(key: str, digits: int) -> Callable[[Grid, str, Method, Entry], Value]:
    return lambda grid, task, method, entry: round(entry.median(key), digits)


def _speed_ratio(grid: Grid, task: str, method: Method, entry: Entry) -> Value:
    ratio = grid.speed_ratio(task, method)
    return None if ratio is None else round(ratio, 4)


def _peak_memory(grid: Grid, task: str, method: Method, entry: Entry) -> Value:
    return max(record.peak_memory_bytes or 0 for record in entry.finished)


def _parameters(grid: Grid, task: str, method: Method, entry: Entry) -> Value:
    return entry.finished[0].parameters


def _spread(grid: Grid, task: str, method: Method, entry: Entry) -> Value:
    return None if entry.speed_spread is None else round(entry.speed_spread, 4)


def _unsteady(grid: Grid, task: str, method: Method, entry: Entry) -> bool:
    return (entry.speed_spread or 0.0) > MOST_SPREAD


def _unsteady_ratio(grid: Grid, task: str, method: Method, entry: Entry) -> bool:
    baseline = grid.entry(task, Method(BASELINE))
    both = [entry, *([baseline] if baseline is not None else [])]
    return any(_unsteady(grid, task, method, each) for each in both)


def _format(pattern: str, divisor: int = 1) -> Callable[[Value], str]:
    return lambda value: "" if value is None else pattern.format(float(value) / divisor)


# A line here is a column in every format.
THROUGHPUT = (
    Column(
        "train steps/s",
        "steps_per_second",
        _rounded("steps_per_second", 4),
        _format("{:.2f}"),
        _unsteady,
    ),
    Column(
        "tokens/s",
        "tokens_per_second",
        _rounded("tokens_per_second", 1),
        _format("{:,.0f}"),
        _unsteady,
    ),
    Column("x softmax", "ratio_to_softmax", _speed_ratio, _format("{:.2f}"), _unsteady_ratio),
    Column("spread", "speed_spread", _spread, _format("{:.0%}")),
    Column("peak MiB", "peak_memory_bytes", _peak_memory, _format("{:,.0f}", 2**20)),
    Column("parameters", "parameters", _parameters, _format("{:,.0f}")),
)


def accuracy_table(grid: Grid) -> Table:
    """Return methods by tasks, in percent, and their average over the tasks shown."""
    table = [["attention", *map(grid.label, grid.tasks), "average"]]
    for method in grid.methods:
        entries = [grid.entry(task, method) for task in grid.tasks]
        means = [entry.mean for entry in entries if entry is not None and entry.mean is not None]
        whole = len(means) == len(grid.tasks) and not grid.split
        average = f"{statistics.mean(means):.1f}" if whole else "-"
        texts = [
            grid.absence(task, method) if entry is None else entry.accuracy_text
            for task, entry in zip(grid.tasks, entries, strict=True)
        ]
        table.append([grid.name(method), *texts, average])
    rates = map(grid.majority_rate, grid.tasks)
    majority = ["-" if rate is None else f"{rate:.1f}" for rate in rates]
    table.append(["(majority class)", *majority, "-"])
    return table


def _entries(grid: Grid) -> list[tuple[str, Method, Entry | None]]:
    return [(task, each, grid.entry(task, each)) for task in grid.tasks for each in grid.methods]


def throughput_table(grid: Grid) -> Table:
    """Return the columns of `THROUGHPUT`, one row per entry."""
    table = [["task", "attention", *(column.title for column in THROUGHPUT)]]
    for task, method, entry in _entries(grid):
        names = [grid.label(task), grid.name(method, task)]
        if entry is None or not entry.finished:
            state = grid.absence(task, method) if entry is None else "failed"
            table.append([*names, state, *["-"] * (len(THROUGHPUT) - 1)])
            continue
        table.append(names + [column.shown(grid, task, method, entry) for column in THROUGHPUT])
    return table


def published_table(protocol: str, tasks: Sequence[str]) -> Table:
    """Return the published accuracies of a protocol with their sources; empty if there are none."""
    with open(PUBLISHED, newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["protocol"] == protocol
            and row["metric"] == "accuracy_pct"
            and row["task"] in tasks
        ]
    figures: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        figures.setdefault((row["method"], row["source"]), {})[row["task"]] = row["value"]
    body = [
        [method, *(values.get(task, "-") for task in tasks), source]
        for (method, source), values in figures.items()
    ]
    return [["method", *tasks, "source"], *body] if body else []


def _write_csv(file: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with open(file, "w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([[_harmless(value) for value in row] for row in rows])


def _harmless(value: object) -> object:
    """Return a cell that a spreadsheet does not take for a formula."""
    risky = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if risky else value


def write_accuracy_csv(file: Path, grid: Grid, published: Table) -> None:
    """Write one line per entry, then one per published figure."""
    rows: list[list[object]] = []
    for task, method, entry in _entries(grid):
        key = ["measured", task, *method]
        if entry is None or entry.mean is None:
            rows.append(
                [
                    *key,
                    "",
                    "",
                    0,
                    "",
                    grid.absence(task, method) if entry is None else "failed",
                    "",
                    "",
                ]
            )
            continue
        status = "at chance" if entry.at_chance else "ok"
        deviation = "" if entry.deviation is None else round(entry.deviation, 4)
        counted = [len(entry.finished), round(entry.majority_rate, 4), status]
        source = entry.finished[0].data_source
        told = "; ".join(entry.departures)
        rows.append([*key, round(entry.mean, 4), deviation, *counted, source, told])
    for name, *values, source in published[1:]:
        for task, value in zip(published[0][1:-1], values, strict=True):
            if value != "-":
                rows.append(["published", task, name, "", value, "", "", "", "", source, ""])
    header = "kind task attention variant mean_percent deviation_percent seeds majority_percent"
    _write_csv(file, [*header.split(), "status", "source", "departures"], rows)


def write_throughput_csv(file: Path, grid: Grid) -> None:
    """Write the columns of `THROUGHPUT`, one line per entry."""
    rows: list[list[object]] = []
    for task, method, entry in _entries(grid):
        if entry is None or not entry.finished:
            empty = [""] * len(THROUGHPUT)
            rows.append(
                [
                    task,
                    *method,
                    *empty,
                    grid.absence(task, method) if entry is None else "failed",
                    "",
                    "",
                ]
            )
            continue
        values = [column.value(grid, task, method, entry) for column in THROUGHPUT]
        cells = ["" if value is None else value for value in values]
        ends = ["ok", entry.finished[0].data_source, "; ".join(entry.departures)]
        rows.append([task, *method, *cells, *ends])
    keys = [column.key for column in THROUGHPUT]
    ends = ["status", "source", "departures"]
    _write_csv(file, ["task", "attention", "variant", *keys, *ends], rows)
