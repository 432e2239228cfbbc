"""Tables and a figure from records: a pure function of the files under the runs folder.

    python -m lra.report --scale mini --protocol nystromformer

Writes accuracy and throughput tables as Markdown and CSV, and a figure of both, to
`results/<scale>/<protocol>/`, and prints the tables. Measured and published figures are never
mixed: published ones stand below, with their source, and only where the data are the benchmark's.
"""

import argparse
import csv
import logging
import statistics
from collections.abc import Sequence
from pathlib import Path

from lra import figure, results
from lra.grid import BASELINE, CHANCE_ERRORS, Cell, Grid, Row, build_grid, median_speed, speed_ratio

log = logging.getLogger(__name__)

PUBLISHED = Path(__file__).resolve().parents[1] / "results" / "published.csv"

Table = list[list[str]]


def _name(row: Row) -> str:
    attention, variant = row
    return attention if variant == "default" else f"{attention} ({variant})"


def accuracy_table(grid: Grid) -> Table:
    """Return backends by tasks, in percent, and their average over the tasks shown."""
    table = [["attention", *grid.tasks, "average"]]
    for row in grid.rows:
        cells = [grid.cell(task, row) for task in grid.tasks]
        means = [cell.mean for cell in cells if cell is not None and cell.mean is not None]
        complete = len(means) == len(grid.tasks)
        texts = ["missing" if cell is None else cell.accuracy_text for cell in cells]
        table.append([_name(row), *texts, f"{statistics.mean(means):.1f}" if complete else "-"])
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
                table.append([task, _name(row), state, "-", "-", "-", "-"])
                continue
            ratio = speed_ratio(cell, baseline)
            table.append(
                [
                    task,
                    _name(row),
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


def notes(grid: Grid) -> list[str]:
    """Return what a reader must know of the numbers, one line each."""
    lines = []
    data = {(r.task, r.data_source, r.data_description, r.data_fingerprint) for r in grid.records}
    for task, source, description, fingerprint in sorted(data):
        lines.append(f"Data of {task}: {source} ({description}), sha256 {fingerprint[:16]}.")
    skipped = {(r.task, r.data_skipped_rows) for r in grid.records if r.data_skipped_rows}
    lines += [f"Bad rows left out of {task}: {count:,}." for task, count in sorted(skipped)]
    if selected := sorted({r.task for r in grid.records if r.selected_on == "test"}):
        lines.append(f"Selected on test, as published: {', '.join(selected)}.")
    machines = {
        f"{r.machine}, {r.device}, {r.dtype}, {r.threads} threads, torch {r.torch}"
        + (", torch.compile" if r.compiled else "")
        for r in grid.records
    }
    lines += [f"Machine: {machine}." for machine in sorted(machines)]
    commits = {
        f"{r.commit[:12] or 'unknown'}{' with local changes' if r.dirty else ''}"
        for r in grid.records
    }
    lines += [f"Code: {commit}." for commit in sorted(commits)]
    failed = [r for r in grid.records if r.status == "failed"]
    lines += [f"Failed: {r.task}/{r.attention} seed {r.seed}: {r.reason}." for r in failed]
    return lines


def settings_notes(grid: Grid) -> list[str]:
    """Return the settings that a scale may choose task by task, one line a task."""
    keys = {
        "model": ("max_length", "positions", "position_std", "pooling", "embedding_std", "dropout"),
        "train": ("learning_rate", "batch_size", "steps"),
    }
    lines = set()
    for record in grid.records:
        chosen = [
            f"{key} {record.config[group][key]}" for group, names in keys.items() for key in names
        ]
        variant = "" if record.variant == "default" else f" ({record.variant})"
        lines.add(f"Setting of {record.task}{variant}: {', '.join(chosen)}.")
    return sorted(lines)


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
            rows.append([task, *row, *[""] * 5, "missing" if cell is None else "failed"])
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
            ]
        )
    header = "task attention variant steps_per_second tokens_per_second ratio_to_softmax"
    _write_csv(file, [*header.split(), "peak_memory_bytes", "parameters", "status"], rows)


def accuracy_page(grid: Grid, scale: str, protocol: str, published: Table) -> str:
    """Return the accuracy table with its notes as Markdown."""
    sources = sorted({record.data_source for record in grid.records})
    parts = [
        f"# Accuracy, scale {scale}, protocol {protocol} ({' and '.join(sources) or 'no'} data)",
        "Test accuracy in percent: mean over seeds ± standard deviation (n = number of seeds).",
        markdown(accuracy_table(grid)),
        f"`at chance`: not above the majority class by more than {CHANCE_ERRORS} standard errors.",
    ]
    if scale != "paper":
        parts.append(f"These are {scale} data: figures compare only within this table.")
    parts.append("\n".join(f"* {line}" for line in notes(grid) + settings_notes(grid)))
    if deviations := _deviations(grid):
        parts.append("Deviations from the published code:\n" + "\n".join(deviations))
    if published:
        parts += [f"## Published figures, protocol {protocol}", markdown(published)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _deviations(grid: Grid) -> list[str]:
    lines = {line for r in grid.records for line in r.deviations}
    return [f"* {line}" for line in sorted(lines)]


def throughput_page(grid: Grid, scale: str, protocol: str) -> str:
    """Return the throughput table with its notes as Markdown."""
    return (
        "\n\n".join(
            [
                f"# Throughput, scale {scale}, protocol {protocol}",
                "Training speed without validation. The ratio to softmax stands only where both"
                " were measured on one machine, device, precision, number of threads, torch and"
                " commit. Memory on the CPU is the whole process at its peak, on a GPU the"
                " allocator's peak.",
                markdown(throughput_table(grid)),
                "\n".join(f"* {line}" for line in notes(grid)),
            ]
        )
        + "\n"
    )


def write_report(
    runs_dir: Path,
    out_dir: Path,
    scale: str,
    protocol: str,
    tasks: Sequence[str] = (),
    attentions: Sequence[str] = (),
) -> str:
    """Write tables and figure of a scale and protocol.

    Args:
        runs_dir: Folder of run folders.
        out_dir: Files go to `out_dir/<scale>/<protocol>`.
        scale: Scale.
        protocol: Protocol.
        tasks: Tasks that must have a column.
        attentions: Backends that must have a row.

    Returns:
        Both pages, for the terminal.
    """
    records = list(results.read_all(runs_dir / scale / protocol))
    if scale == "paper":
        for record in [r for r in records if r.data_source == "stand-in"]:
            log.warning("left out: %s/%s is stand-in data", record.task, record.attention)
            records.remove(record)
    grid = build_grid(records, tasks, attentions)
    published = published_table(protocol, grid.tasks) if scale == "paper" else []
    folder = out_dir / scale / protocol
    folder.mkdir(parents=True, exist_ok=True)
    pages = {
        "accuracy": accuracy_page(grid, scale, protocol, published),
        "throughput": throughput_page(grid, scale, protocol),
    }
    for name, page in pages.items():
        (folder / f"{name}.md").write_text(page)
    write_accuracy_csv(folder / "accuracy.csv", grid, published)
    write_throughput_csv(folder / "throughput.csv", grid)
    figure.draw(grid, folder / "accuracy_vs_speed.svg", f"scale {scale}, protocol {protocol}")
    return "\n".join(pages.values()) + f"\nWritten to {folder}"


def main() -> None:
    """Write and print the report that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m lra.report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--scale", default="paper", help="scale of the runs (paper)")
    parser.add_argument("--protocol", default="nystromformer", help="protocol (nystromformer)")
    parser.add_argument("--tasks", default="", help="tasks that get a column, trained or not")
    parser.add_argument("--attentions", default="", help="backends that get a row, trained or not")
    parser.add_argument("--runs-dir", type=Path, default=Path("results/runs"))
    parser.add_argument("--out-dir", type=Path, default=Path("results"))
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    wanted = [[name for name in text.split(",") if name] for text in (args.tasks, args.attentions)]
    print(write_report(args.runs_dir, args.out_dir, args.scale, args.protocol, *wanted))


if __name__ == "__main__":
    main()
