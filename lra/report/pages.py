"""The pages of a report: the tables with what a reader must know of their numbers."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lra.compose import departures
from lra.config import ConfigError
from lra.markdown import Table, escaped, markdown
from lra.record import Record, read_records
from lra.report.curve_figure import learning_curves, logged
from lra.report.deviations import deviation_lines
from lra.report.figure import save
from lra.report.grid import CHANCE_ERRORS, Grid, build_grid, task_of
from lra.report.heat_map import heat_map
from lra.report.latex import latex
from lra.report.length_figure import accuracy_against_length
from lra.report.lengths import by_length, length_table, write_length_csv
from lra.report.published import beside
from lra.report.selection import Selection
from lra.report.speed_figure import accuracy_against_speed
from lra.report.standing import AS_BEST, BEST, EXPLAINED, standings, stored
from lra.report.tables import (
    MARK,
    MOST_SPREAD,
    Standings,
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


def accuracy_page(
    grid: Grid, scale: str, protocol: str, published: Table, standings: Standings
) -> str:
    """Return the accuracy table with its notes as Markdown."""
    parts = [
        f"# Accuracy, scale {scale}, protocol {protocol} ({_sources(grid)} data)",
        "Test accuracy in percent: mean over seeds ± standard deviation (n = number of seeds).",
        markdown(accuracy_table(grid, standings)),
        _stars(grid),
        f"`at chance`: not above the majority class by more than {CHANCE_ERRORS} standard errors;"
        " where only some seeds are above it, their number is beside n. `above chance` averages"
        " (accuracy - chance) / (1 - chance); an incomplete row has no average.",
        *([EXPLAINED] if standings else []),
        *length_parts(grid),
    ]
    if scale != "paper":
        parts.append(f"These are {scale} data: figures compare only within this table.")
    parts.append("\n".join(f"* {escaped(line)}" for line in notes(grid) + settings_notes(grid)))
    if deviations := deviation_lines(grid):
        parts.append("Deviations from the published code:\n" + "\n".join(deviations))
    if published:
        parts += [f"## Published figures, protocol {protocol}", markdown(published)]
        if compared := beside(grid, protocol):
            parts += ["## Ours beside published figures, in percent", markdown(compared)]
    return "\n\n".join(part for part in parts if part) + "\n"


def length_parts(grid: Grid) -> list[str]:
    """Return accuracy by length as Markdown, a title and a table a task; none without records."""
    parts = []
    for each in by_length(grid):
        parts.append(f"## {escaped(grid.label(each.task))}: accuracy by length, in percent")
        parts.append("Bins of equal numbers of test examples, by tokens of the longest sequence.")
        parts.append(markdown(length_table(grid, each)))
    return parts


def _stars(grid: Grid) -> str:
    """Return what departs from its recipe, below a table that marks it; nothing where none does."""
    return "\n".join(f"* {escaped(line)}" for line in grid.departure_lines())


def screen(grid: Grid, scale: str, protocol: str, published: Table, standings: Standings) -> str:
    """Return what a terminal shows of a report: its tables, and below each what must be known."""
    failed = [line for line in notes(grid) if line.startswith("Failed")]
    parts = [
        f"Training speed, scale {scale}, protocol {protocol}:",
        markdown(throughput_table(grid)),
        *([f"Published accuracy, protocol {protocol}:", markdown(published)] if published else []),
        f"Test accuracy in percent, scale {scale}, protocol {protocol} ({_sources(grid)} data),"
        " mean over seeds ± standard deviation:",
        markdown(accuracy_table(grid, standings)),
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


# How LaTeX shows what is best, and what cannot be told from it.
_COMMANDS = {BEST: "textbf", AS_BEST: "underline"}


def latex_tables(grid: Grid, scale: str, protocol: str, standings: Standings) -> dict[str, str]:
    """Return the tables of both pages as LaTeX, by the names of their files."""
    where = f"scale {scale}, protocol {protocol}, {_sources(grid)} data"
    commands = {
        (1 + grid.methods.index(method), 1 + grid.tasks.index(task)): _COMMANDS[standing.place]
        for (task, method), standing in standings.items()
        if standing.place in _COMMANDS
    }
    accuracy = f"Test accuracy in percent, mean over n seeds ± standard deviation; {where}."
    if commands:
        accuracy += " Bold: best; underlined: not told from it."
    speed = f"Training speed, the median over windows of updates; {where}."
    tables = {
        "accuracy": latex(accuracy_table(grid), accuracy, commands),
        "throughput": latex(throughput_table(grid), speed, {}),
    }
    lengths = [
        latex(length_table(grid, each), f"{grid.label(each.task)} by tokens; {where}.", {})
        for each in by_length(grid)
    ]
    if lengths:
        tables["accuracy_by_length"] = "\n".join(lengths)
    if scale == "paper" and (compared := beside(grid, protocol)):
        tables["published"] = latex(compared, f"Beside published figures; {where}.", {})
    return tables


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
    answers = stored(runs_dir / scale / protocol)
    ranks = standings(grid, answers)
    folder = out_dir / scale / protocol
    folder.mkdir(parents=True, exist_ok=True)
    pages = {
        "accuracy": accuracy_page(grid, scale, protocol, published, ranks),
        "throughput": throughput_page(grid, scale, protocol),
    }
    for name, page in pages.items():
        (folder / f"{name}.md").write_text(page, encoding="utf-8")
    write_accuracy_csv(folder / "accuracy.csv", grid, published, ranks)
    write_throughput_csv(folder / "throughput.csv", grid)
    write_length_csv(folder / "accuracy_by_length.csv", grid)
    texts = latex_tables(grid, scale, protocol, ranks)
    for name in ("accuracy", "throughput", "accuracy_by_length", "published"):
        # One of earlier records would be beside what it is not of.
        (folder / f"{name}.tex").unlink(missing_ok=True)
        if name in texts:
            (folder / f"{name}.tex").write_text(texts[name], encoding="utf-8")
    title = f"scale {scale}, protocol {protocol}, {_sources(grid)} data"
    save(accuracy_against_speed(grid, title), folder / "accuracy_vs_speed")
    save(accuracy_against_length(grid, title), folder / "accuracy_by_length")
    curves = logged(runs_dir / scale / protocol)
    save(learning_curves(grid, title, curves), folder / "learning_curves")
    save(heat_map(grid, title, answers), folder / "difference_to_softmax")
    if full:
        return "\n".join(pages.values()) + f"\nWritten to {folder}"
    files = f"With data, machines, settings and deviations: {folder / 'accuracy.md'} and beside it"
    return f"{screen(grid, scale, protocol, published, ranks)}\n\n{files}"
