"""Build the tables of a report, measured and published figures, as Markdown and CSV."""

import csv
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lra.markdown import Table
from lra.record import Method
from lra.report.grid import Entry, Grid
from lra.report.published import figures
from lra.report.standing import MARKS, Standing
from lra.words import printable

Value = str | int | float | None
# Marks an unsteady speed.
MARK = "(!)"
AVERAGES = ("average", "above chance")
Standings = Mapping[tuple[str, Method], Standing]


@dataclass(frozen=True)
class Column:
    """A column of a table of entries.

    Args:
        title: Its title in tables for people.
        key: Its title in CSV.
        value: Returns the CSV value for a grid, a task and a method whose entry has a result; None
            leaves the field empty.
        text: Turns the value into the text that people read.
        doubtful: Whether a mark warns people not to rely on the value.
    """

    title: str
    key: str
    value: Callable[[Grid, str, Method, Entry], Value]
    text: Callable[[Value], str] = str
    doubtful: Callable[[Grid, str, Method, Entry], bool] = lambda *which: False

    def shown(self, grid: Grid, task: str, method: Method, entry: Entry) -> str:
        """Return the text that people read, with its mark if any."""
        text = self.text(self.value(grid, task, method, entry))
        return f"{text} {MARK}" if text and self.doubtful(grid, task, method, entry) else text


def _rounded(key: str, digits: int) -> Callable[[Grid, str, Method, Entry], Value]:
    return lambda grid, task, method, entry: round(entry.median(key), digits)


def _speed_ratio(grid: Grid, task: str, method: Method, entry: Entry) -> Value:
    ratio = grid.speed_ratio(task, method)
    return None if ratio is None else round(ratio, 4)


def _peak_memory(grid: Grid, task: str, method: Method, entry: Entry) -> Value:
    return entry.peak_memory


def _parameters(grid: Grid, task: str, method: Method, entry: Entry) -> Value:
    return entry.finished[0].parameters


def _spread(grid: Grid, task: str, method: Method, entry: Entry) -> Value:
    return None if entry.speed_spread is None else round(entry.speed_spread, 4)


def _unsteady(grid: Grid, task: str, method: Method, entry: Entry) -> bool:
    return entry.unsteady


def _unsteady_ratio(grid: Grid, task: str, method: Method, entry: Entry) -> bool:
    base = grid.baseline(task)
    baseline = grid.entry(task, base) if base else None
    return entry.unsteady or (baseline is not None and baseline.unsteady)


def _format(pattern: str, divisor: int = 1) -> Callable[[Value], str]:
    return lambda value: "" if value is None else pattern.format(float(value) / divisor)


# Each line here is a column in every format.
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


def accuracy_table(grid: Grid, standings: Standings | None = None) -> Table:
    """Return accuracies in percent, methods by tasks, with averages over the tasks shown.

    Args:
        grid: The entries.
        standings: The best entries and those not significantly worse than them, to be marked;
            None marks nothing.
    """
    table = [["attention", *map(grid.label, grid.tasks), *AVERAGES]]
    for method in grid.methods:
        texts = []
        for task in grid.tasks:
            entry, standing = grid.entry(task, method), (standings or {}).get((task, method))
            text = grid.absence(task, method) if entry is None else entry.accuracy_text
            texts.append(text + (MARKS[standing.place] if standing else ""))
        table.append([grid.name(method), *texts, *_averages(grid, method)])
    rates = map(grid.majority_rate, grid.tasks)
    majority = ["-" if rate is None else f"{rate:.1f}" for rate in rates]
    table.append(["(majority class)", *majority, *["-"] * len(AVERAGES)])
    return table


def _averages(grid: Grid, method: Method) -> list[str]:
    """Return the averages of a row; a row that lacks a task has none."""
    entries = [grid.entry(task, method) for task in grid.tasks]
    columns = (
        [None if entry is None else entry.mean for entry in entries],
        [None if entry is None else entry.above_chance for entry in entries],
    )
    texts = []
    for values in columns:
        numbers = [value for value in values if value is not None]
        whole = len(numbers) == len(grid.tasks) and not grid.split
        texts.append(f"{statistics.mean(numbers):.1f}" if numbers and whole else "-")
    return texts


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
    rows = [row for row in figures() if row["protocol"] == protocol and row["task"] in tasks]
    values_of: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        values_of.setdefault((row["method"], row["source"]), {})[row["task"]] = row["value"]
    body = [
        [method, *(values.get(task, "-") for task in tasks), source]
        for (method, source), values in values_of.items()
    ]
    return [["method", *tasks, "source"], *body] if body else []


def write_csv(file: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a header and rows whose texts no spreadsheet takes for formulas."""
    with open(file, "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([[_harmless(value) for value in row] for row in rows])


def _harmless(value: object) -> object:
    """Return a value that fits on one line and that no spreadsheet takes for a formula."""
    if not isinstance(value, str):
        return value
    risky = value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{printable(value)}" if risky else printable(value)


_ACCURACY = (
    *("kind", "task", "attention", "variant", "mean_percent", "deviation_percent", "seeds"),
    *("majority_percent", "status", "source", "departures", "seeds_above_chance"),
    *("above_chance_percent", "standing", "test"),
)


def write_accuracy_csv(
    file: Path,
    grid: Grid,
    published: Table,
    standings: Standings,
    submitted: Grid | None = None,
) -> None:
    """Write one line per entry, then one per submitted entry and one per published figure."""
    rows: list[dict[str, object]] = []
    for task, method, entry in _entries(grid):
        row = {"kind": "measured", "task": task, **method._asdict()}
        rows.append(row | _accuracy_values(grid, task, method, entry, standings))
    if submitted is not None:
        for (task, method), entry in sorted(submitted.entries.items()):
            row = {"kind": "submitted", "task": task, **method._asdict()}
            rows.append(row | _accuracy_values(submitted, task, method, entry, {}))
    for name, *values, source in published[1:]:
        for task, value in zip(published[0][1:-1], values, strict=True):
            if value != "-":
                figure = {"task": task, "attention": name, "mean_percent": value}
                rows.append({"kind": "published", "source": source, **figure})
    write_csv(file, _ACCURACY, [[row.get(key, "") for key in _ACCURACY] for row in rows])


def _accuracy_values(
    grid: Grid, task: str, method: Method, entry: Entry | None, standings: Standings
) -> dict[str, object]:
    """Return the CSV values of an entry, by the keys of the header."""
    if entry is None or entry.mean is None:
        return {"seeds": 0, "status": grid.absence(task, method) if entry is None else "failed"}
    above, standing = entry.above_chance, standings.get((task, method))
    return {
        "mean_percent": round(entry.mean, 4),
        "deviation_percent": "" if entry.deviation is None else round(entry.deviation, 4),
        "seeds": len(entry.finished),
        "majority_percent": round(entry.majority_rate, 4),
        "status": "at chance" if entry.at_chance else "ok",
        "source": entry.finished[0].data_source,
        "departures": "; ".join(entry.departures),
        "seeds_above_chance": entry.num_above_chance,
        "above_chance_percent": "" if above is None else round(above, 4),
        "standing": standing.place if standing else "",
        "test": standing.test if standing else "",
    }


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
    write_csv(file, ["task", "attention", "variant", *keys, *ends], rows)
