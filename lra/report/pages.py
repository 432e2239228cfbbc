"""The pages of a report: the tables with what a reader must know of their numbers."""

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lra.config import ConfigError, departures, groups
from lra.markdown import Table, escaped, markdown
from lra.record import Record, read_records
from lra.report import figure
from lra.report.grid import CHANCE_ERRORS, TASK_ORDER, Grid, build_grid, task_of
from lra.report.selection import Selection
from lra.report.tables import (
    MARK,
    MOST_SPREAD,
    accuracy_table,
    published_table,
    throughput_table,
    write_accuracy_csv,
    write_throughput_csv,
)
from lra.variant import UNKNOWN, told

log = logging.getLogger(__name__)


def notes(grid: Grid) -> list[str]:
    """Return what a reader must know of the numbers, one line each."""
    lines = []
    data = {(r.task, r.data_source, r.data_description, r.data_fingerprint) for r in grid.records}
    for task, source, description, fingerprint in sorted(data):
        lines.append(f"Data of {task}: {source} ({description}), sha256 {fingerprint[:16]}.")
    lines += [
        f"Records of {task} are of different data, each in a column of its own: accuracies compare"
        " only within a column, and no average is taken."
        for task in grid.split
    ]
    skipped = {(r.task, r.data_skipped_rows) for r in grid.records if r.data_skipped_rows}
    lines += [f"Bad rows left out of {task}: {count:,}." for task, count in sorted(skipped)]
    if selected := sorted({r.task for r in grid.records if r.selected_on == "test"}):
        lines.append(f"Selected on test, as published: {', '.join(selected)}.")
    own = {(r.attention, r.attention_source) for r in grid.records if r.attention_source}
    lines += [f"Backend {name}: {source}." for name, source in sorted(own)]
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
    lines += [f"Failed: {r.task}/{r.method} seed {r.seed}: {r.reason}." for r in failed]
    return lines


def settings_notes(grid: Grid) -> list[str]:
    """Return the settings that a scale may choose task by task, one line per task."""
    keys = {
        "model": ("max_length", "positions", "position_std", "pooling", "embedding_std", "dropout"),
        "train": ("learning_rate", "batch_size", "steps"),
    }
    lines = set()
    for record in grid.records:
        chosen = [
            f"{key} {record.config.get(group, {}).get(key, '?')}"
            for group, names in keys.items()
            for key in names
        ]
        variant = "" if record.variant == "default" else f" ({record.variant})"
        lines.add(f"Setting of {record.task}{variant}: {', '.join(chosen)}.")
    return sorted(lines)


def _sources(grid: Grid) -> str:
    return " and ".join(sorted({record.data_source for record in grid.records})) or "no"


def accuracy_page(grid: Grid, scale: str, protocol: str, published: Table) -> str:
    """Return the accuracy table with its notes as Markdown."""
    parts = [
        f"# Accuracy, scale {scale}, protocol {protocol} ({_sources(grid)} data)",
        "Test accuracy in percent: mean over seeds ± standard deviation (n = number of seeds).",
        markdown(accuracy_table(grid)),
        _stars(grid),
        f"`at chance`: not above the majority class by more than {CHANCE_ERRORS} standard errors.",
    ]
    if scale != "paper":
        parts.append(f"These are {scale} data: figures compare only within this table.")
    parts.append("\n".join(f"* {escaped(line)}" for line in notes(grid) + settings_notes(grid)))
    if deviations := _deviations(grid):
        parts.append("Deviations from the published code:\n" + "\n".join(deviations))
    if published:
        parts += [f"## Published figures, protocol {protocol}", markdown(published)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _stars(grid: Grid) -> str:
    """Return what departs from its recipe, below a table that marks it; nothing where none does."""
    return "\n".join(f"* {escaped(line)}" for line in grid.departure_lines())


def _deviations(grid: Grid) -> list[str]:
    lines = {line for r in grid.records for line in r.deviations if concerns(line, r)}
    return [f"* {escaped(line)}" for line in sorted(lines)]


# How deviations call tasks, at their start.
_TASKS = {name.lower().replace("-", "") for name in TASK_ORDER}


def concerns(deviation: str, record: Record) -> bool:
    """Tell whether a deviation is of a record's task and backend.

    One that begins with the name of a task is of it and of every other task that it names, one that
    begins with a backend's is of that; any other is of all.
    """
    words = [re.sub(r"'s$|[^a-z0-9_]", "", word.lower()) for word in deviation.split()]
    subject = words[0] if words else ""
    if subject in _TASKS:
        return record.task not in _TASKS or record.task in words
    if subject in groups().options("attention"):
        return subject in _backends(record.config.get("attention")) | {record.attention}
    return True


def _backends(attention: Any) -> set[str]:
    """Return the names of a backend and of those inside it."""
    if not isinstance(attention, dict):
        return set()
    return {str(attention.get("name"))} | _backends(attention.get("inner"))


def screen(grid: Grid, scale: str, protocol: str, published: Table) -> str:
    """Return what a terminal shows of a report: its tables, and below each what must be known."""
    failed = [line for line in notes(grid) if line.startswith("Failed")]
    parts = [
        f"Training speed, scale {scale}, protocol {protocol}:",
        markdown(throughput_table(grid)),
        *([f"Published accuracy, protocol {protocol}:", markdown(published)] if published else []),
        f"Test accuracy in percent, scale {scale}, protocol {protocol} ({_sources(grid)} data),"
        " mean over seeds ± standard deviation:",
        markdown(accuracy_table(grid)),
        "\n".join([*grid.departure_lines(), *failed]),
    ]
    return "\n\n".join(part for part in parts if part)


def throughput_page(grid: Grid, scale: str, protocol: str) -> str:
    """Return the throughput table with its notes as Markdown."""
    return (
        "\n\n".join(
            [
                f"# Throughput, scale {scale}, protocol {protocol} ({_sources(grid)} data)",
                "Training speed without validation: the median over windows of updates. `spread` is"
                " the interquartile range of these windows over their median; where it exceeds"
                f" {MOST_SPREAD:.0%}, {MARK} says that the machine was disturbed. The ratio to"
                " softmax is given only where both were measured on one machine, device,"
                " precision, number of threads, torch and commit. Memory on the CPU is the whole"
                " process at its peak, on a GPU the allocator's peak.",
                markdown(throughput_table(grid)),
                *[_stars(grid)] * bool(grid.departure_lines()),
                "\n".join(f"* {escaped(line)}" for line in notes(grid)),
            ]
        )
        + "\n"
    )


def _with_departures(record: Record) -> Record:
    """Return a record that tells what departs from its recipe, though it is older than that."""
    if record.departures != UNKNOWN:
        return record
    try:
        return replace(record, departures=told(departures(record.config)))
    except (ConfigError, KeyError, TypeError):
        # Its recipe is no more, or its configuration of another form.
        return record


def write_report(
    runs_dir: Path,
    out_dir: Path,
    scale: str,
    protocol: str,
    tasks: Sequence[str] = (),
    attentions: Sequence[str] = (),
    seeds: Sequence[int] = (),
    only: Selection | None = None,
    full: bool = True,
) -> str:
    """Write tables and figure of a scale and protocol.

    Args:
        runs_dir: Folder of run folders.
        out_dir: Files go to `out_dir/<scale>/<protocol>`.
        scale: Scale.
        protocol: Protocol.
        tasks: Tasks that must have a column.
        attentions: Backends that must have a row.
        seeds: Seeds that every cell should have.
        only: Records to show; all where None.
        full: Whether to return both pages as they are written, else what a terminal shows.

    Returns:
        The text, with where the files are.
    """
    found = map(_with_departures, read_records(runs_dir / scale / protocol))
    records = [record for record in found if only is None or only.has(record)]
    if scale == "paper":
        for record in [r for r in records if r.data_source == "stand-in"]:
            log.warning("left out: %s/%s is stand-in data", record.task, record.attention)
            records.remove(record)
    # Those of the user's own go by their paths.
    tasks, attentions = ([n for n in names if n != "custom"] for names in (tasks, attentions))
    grid = build_grid(records, tasks, attentions, seeds)
    published = (
        published_table(protocol, list(dict.fromkeys(map(task_of, grid.tasks))))
        if scale == "paper"
        else []
    )
    folder = out_dir / scale / protocol
    folder.mkdir(parents=True, exist_ok=True)
    pages = {
        "accuracy": accuracy_page(grid, scale, protocol, published),
        "throughput": throughput_page(grid, scale, protocol),
    }
    for name, page in pages.items():
        (folder / f"{name}.md").write_text(page, encoding="utf-8")
    write_accuracy_csv(folder / "accuracy.csv", grid, published)
    write_throughput_csv(folder / "throughput.csv", grid)
    figure.draw(grid, folder / "accuracy_vs_speed.svg", f"scale {scale}, protocol {protocol}")
    if full:
        return "\n".join(pages.values()) + f"\nWritten to {folder}"
    files = f"With data, machines, settings and deviations: {folder / 'accuracy.md'} and beside it"
    return f"{screen(grid, scale, protocol, published)}\n\n{files}"
