"""The tables of a report: of measured cells, of published figures, as Markdown and as CSV."""

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path

from lra import results
from lra.grid import BASELINE, Cell, Grid, Row, median_speed, speed_ratio

PUBLISHED = results.ROOT / "results" / "published.csv"

Table = list[list[str]]


def row_name(row: Row) -> str:
    """Return a backend's name, with its variant in parentheses where it has one."""
    attention, variant = row
    return attention if variant == "default" else f"{attention} ({variant})"


def accuracy_table(grid: Grid) -> Table:
    """Return backends by tasks, in percent, and their average over the tasks shown."""
    table = [["attention", *map(grid.label, grid.tasks), "average"]]
    for row in grid.rows:
        cells = [grid.cell(task, row) for task in grid.tasks]
        means = [cell.mean for cell in cells if cell is not None and cell.mean is not None]
        complete = len(means) == len(grid.tasks)
        texts = ["missing" if cell is None else cell.accuracy_text for cell in cells]
        table.append([row_name(row), *texts, f"{statistics.mean(means):.1f}" if complete else "-"])
    majority = []
    for task in grid.tasks:
        rates = [c.majority_rate for key, c in grid.cells.items() if key[0] == task and c.finished]
        majority.append(f"{rates[0]:.1f}" if rates else "-")
    table.append(["(majority class)", *majority, "-"])
    return table


def throughput_table(grid: Grid) -> Table:
    """Return speed, its ratio to softmax, memory and parameters for every cell."""
    header = ["task", "attention", "train steps/s", "tokens/s", "x softmax", "peak MiB"]
    table = [[*header, "parameters"]]
    for task in grid.tasks:
        baseline = grid.cell(task, (BASELINE, "default"))
        for row in grid.rows:
            cell = grid.cell(task, row)
            if cell is None or not cell.finished:
                state = "missing" if cell is None else "failed"
                table.append([grid.label(task), row_name(row), state, "-", "-", "-", "-"])
                continue
            ratio = speed_ratio(cell, baseline)
            table.append(
                [
                    grid.label(task),
                    row_name(row),
                    f"{median_speed(cell, 'steps_per_second'):.2f}",
                    f"{median_speed(cell, 'tokens_per_second'):,.0f}",
                    "" if ratio is None else f"{ratio:.2f}",
                    f"{max(r.peak_memory_bytes or 0 for r in cell.finished) / 2**20:,.0f}",
                    f"{cell.finished[0].parameters:,}",
                ]
            )
    return table


def markdown(table: Table) -> str:
    """Return a table as aligned Markdown, its first row being the header."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]

    def line(row: list[str]) -> str:
        return "| " + " | ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(table[0]), rule, *map(line, table[1:])])


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
        writer.writerows(rows)


def _cells(grid: Grid) -> list[tuple[str, Row, Cell | None]]:
    return [(task, row, grid.cell(task, row)) for task in grid.tasks for row in grid.rows]


def write_accuracy_csv(file: Path, grid: Grid, published: Table) -> None:
    """Write one line a cell, then one a published figure."""
    rows: list[list[object]] = []
    for task, (attention, variant), cell in _cells(grid):
        key = ["measured", task, attention, variant]
        if cell is None or cell.mean is None:
            rows.append([*key, "", "", 0, "", "missing" if cell is None else "failed", ""])
            continue
        status = "at chance" if cell.at_chance else "ok"
        deviation = "" if cell.deviation is None else round(cell.deviation, 4)
        numbers = [round(cell.mean, 4), deviation, len(cell.finished), round(cell.majority_rate, 4)]
        rows.append([*key, *numbers, status, cell.finished[0].data_source])
    for method, *values, source in published[1:]:
        for task, value in zip(published[0][1:-1], values, strict=True):
            if value != "-":
                rows.append(["published", task, method, "", value, "", "", "", "", source])
    header = "kind task attention variant mean_percent deviation_percent seeds majority_percent"
    _write_csv(file, [*header.split(), "status", "source"], rows)


def write_throughput_csv(file: Path, grid: Grid) -> None:
    """Write one line a cell."""
    rows: list[list[object]] = []
    for task, row, cell in _cells(grid):
        if cell is None or not cell.finished:
            rows.append([task, *row, *[""] * 5, "missing" if cell is None else "failed", ""])
            continue
        ratio = speed_ratio(cell, grid.cell(task, (BASELINE, "default")))
        rows.append(
            [
                task,
                *row,
                round(median_speed(cell, "steps_per_second"), 4),
                round(median_speed(cell, "tokens_per_second"), 1),
                "" if ratio is None else round(ratio, 4),
                max(record.peak_memory_bytes or 0 for record in cell.finished),
                cell.finished[0].parameters,
                "ok",
                cell.finished[0].data_source,
            ]
        )
    header = "task attention variant steps_per_second tokens_per_second ratio_to_softmax"
    _write_csv(file, [*header.split(), "peak_memory_bytes", "parameters", "status", "source"], rows)
