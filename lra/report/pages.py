"""Write the pages of a report: its tables and the notes needed to read their numbers."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from lra.markdown import Table, escaped, markdown
from lra.record import Record, records_of
from lra.report.binned_figures import accuracy_against_group, accuracy_against_length
from lra.report.curve_figure import learning_curves, validated
from lra.report.deviations import deviation_lines
from lra.report.effective_range import GroupTables, group_tables
from lra.report.figure import save
from lra.report.grid import Grid, build_grid, task_of
from lra.report.heat_map import heat_map
from lra.report.latex import latex
from lra.report.lengths import by_length, length_table, write_group_csv, write_length_csv
from lra.report.notes import (
    ACCURACY,
    LENGTHS,
    RANGES,
    SPEED,
    SUBMITTED,
    changed,
    explanations,
    heading,
    notes,
    settings_notes,
    sources,
)
from lra.report.published import beside
from lra.report.selection import Selection, with_departures
from lra.report.speed_figure import accuracy_against_speed
from lra.report.standing import (
    AS_BEST,
    BEST,
    IN_SHORT,
    UNTESTED,
    Answers,
    prediction_reader,
    standings,
)
from lra.report.submissions import (
    Submission,
    submission_notes,
    submission_table,
    submitted,
)
from lra.report.tables import (
    Standings,
    accuracy_table,
    published_table,
    throughput_table,
    write_accuracy_csv,
    write_throughput_csv,
)
from lra.report.web.page import PICTURES, Report, whole_page
from lra.words import printable

log = logging.getLogger(__name__)


def accuracy_page(
    grid: Grid,
    scale: str,
    protocol: str,
    published: Table,
    standings: Standings,
    groups: GroupTables = (),
    submissions: Sequence[Submission] = (),
) -> str:
    """Return the accuracy table with its notes as Markdown."""
    parts = [
        f"# Accuracy, scale {scale}, protocol {protocol} ({sources(grid)} data)",
        ACCURACY,
        markdown(accuracy_table(grid, standings)),
        _stars(grid),
        *explanations(scale, bool(standings)),
        *length_parts(grid),
        *group_parts(grid, groups),
    ]
    parts.append("\n".join(f"* {escaped(line)}" for line in notes(grid) + settings_notes(grid)))
    if deviations := deviation_lines(grid):
        lines = [f"* {escaped(line)}" for line in deviations]
        parts.append("Deviations from the published code:\n" + "\n".join(lines))
    others = submitted(submissions, scale, protocol)
    if table := submission_table(others):
        lines = [f"* {escaped(line)}" for line in submission_notes(submissions, others, grid)]
        parts += ["## Submissions", SUBMITTED, markdown(table), "\n".join(lines)]
    if published:
        parts += [f"## Published figures, protocol {protocol}", markdown(published)]
        if compared := beside(grid, protocol):
            parts += ["## Our figures beside published ones, in percent", markdown(compared)]
    return "\n\n".join(part for part in parts if part) + "\n"


def length_parts(grid: Grid) -> list[str]:
    """Return accuracy by length as Markdown, one title and table per task that has records."""
    parts = []
    for each in by_length(grid):
        parts.append(f"## {escaped(grid.label(each.task))}: accuracy by length, in percent")
        parts.append(LENGTHS)
        parts.append(markdown(length_table(grid, each)))
    return parts


def group_parts(grid: Grid, groups: GroupTables) -> list[str]:
    """Return accuracy by each task's groups of examples as Markdown; nothing without records."""
    parts = []
    for binned, table in groups:
        task = escaped(grid.label(binned.task))
        parts.append(f"## {task}: accuracy by {escaped(binned.quantity)}, in percent")
        parts += [RANGES, markdown(table)]
    return parts


def _stars(grid: Grid) -> str:
    """Return the notes, below a table, on the departures from recipes that it marks, if any."""
    return "\n".join(f"* {escaped(line)}" for line in grid.departure_lines())


def screen(grid: Grid, scale: str, protocol: str, published: Table, standings: Standings) -> str:
    """Return the terminal form of a report: its tables, each followed by the essential notes."""
    failed = [line for line in notes(grid) if line.startswith("Failed")]
    failed += changed(grid)
    parts = [
        f"Training speed, scale {scale}, protocol {protocol}:",
        markdown(throughput_table(grid)),
        *([f"Published accuracy, protocol {protocol}:", markdown(published)] if published else []),
        f"Test accuracy in percent, scale {scale}, protocol {protocol} ({sources(grid)} data),"
        " mean over seeds ± standard deviation:",
        markdown(accuracy_table(grid, standings)),
        "\n".join(map(printable, [IN_SHORT, *grid.departure_lines(), *failed])),
    ]
    return "\n\n".join(part for part in parts if part)


def throughput_page(grid: Grid, scale: str, protocol: str) -> str:
    """Return the throughput table with its notes as Markdown."""
    return (
        "\n\n".join(
            [
                f"# Throughput, scale {scale}, protocol {protocol} ({sources(grid)} data)",
                SPEED,
                markdown(throughput_table(grid)),
                *[_stars(grid)] * bool(grid.departure_lines()),
                "\n".join(f"* {escaped(line)}" for line in notes(grid)),
            ]
        )
        + "\n"
    )


# Tables that may be written as LaTeX, by file name.
_LATEX = (
    *("accuracy", "throughput", "accuracy_by_length", "accuracy_by_group", "published"),
    "submissions",
)
# How LaTeX shows the best entry, those not significantly worse than it, and those not tested.
_COMMANDS = {BEST: "textbf", AS_BEST: "underline", UNTESTED: "textit"}


def _with_n_in_caption(grid: Grid) -> tuple[Table, str]:
    """Return the accuracy table and its number of seeds as text, given only there if all agree."""
    table = accuracy_table(grid)
    counts = {len(entry.finished) for entry in grid.entries.values() if entry.finished}
    if len(counts) != 1:
        return table, "n seeds"
    [n] = counts
    short = [[row[0], *(text.replace(f" (n={n})", "") for text in row[1:])] for row in table]
    return short, f"n = {n} seeds" if n > 1 else "one seed"


def latex_tables(
    grid: Grid,
    scale: str,
    protocol: str,
    standings: Standings,
    groups: GroupTables = (),
    submissions: Sequence[Submission] = (),
) -> dict[str, str]:
    """Return the tables of both pages as LaTeX, by the names of their files."""
    where = f"scale {scale}, protocol {protocol}, {sources(grid)} data"
    commands = {
        (1 + grid.methods.index(method), 1 + grid.tasks.index(task)): _COMMANDS[standing.place]
        for (task, method), standing in standings.items()
        if standing.place in _COMMANDS
    }
    table, seeds = _with_n_in_caption(grid)
    accuracy = f"Test accuracy in percent, mean over {seeds} ± standard deviation; {where}."
    if seeds == "one seed":
        accuracy = f"Test accuracy in percent, one seed; {where}."
    if commands:
        accuracy += " Bold: best; underlined: not significantly worse."
        accuracy += " Italic: not tested." * ("textit" in commands.values())
    speed = f"Training speed: median over windows of updates; {where}."
    tables = {
        "accuracy": latex(table, accuracy, commands),
        "throughput": latex(throughput_table(grid), speed, {}),
    }
    lengths = [
        latex(
            length_table(grid, each),
            f"Accuracy on {grid.label(each.task)} in percent, by tokens of the longest sequence;"
            f" {where}.",
            {},
        )
        for each in by_length(grid)
    ]
    if lengths:
        tables["accuracy_by_length"] = "\n".join(lengths)
    if groups:
        tables["accuracy_by_group"] = "\n".join(
            latex(
                table,
                f"Accuracy on {grid.label(binned.task)} in percent, by {binned.quantity}; {where}.",
                {},
            )
            for binned, table in groups
        )
    if scale == "paper" and (compared := beside(grid, protocol)):
        tables["published"] = latex(compared, f"Our figures beside published ones; {where}.", {})
    if table := submission_table(submitted(submissions, scale, protocol)):
        tables["submissions"] = latex(table, f"Results submitted by others; {where}.", {})
    return tables


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
    submissions: Sequence[Submission] = (),
) -> str:
    """Write the tables and pictures of a scale and protocol.

    Args:
        runs_dir: Folder that holds the run folders.
        out_dir: Files are written to `out_dir/<scale>/<protocol>`.
        scale: Scale.
        protocol: Protocol.
        tasks: Tasks that must have a column.
        attentions: Backends that must have a row.
        seeds: Seeds that every cell should have.
        only: Records to show; None shows all.
        full: Whether to return both pages as written, rather than the short form for a terminal.
        submissions: Results submitted by others, of any scale and protocol.

    Returns:
        The text, including where the files are.
    """
    records = _shown(records_of(runs_dir, scale, protocol), only)
    # A user's own tasks and backends are named by their paths.
    tasks, attentions = ([n for n in names if n != "custom"] for names in (tasks, attentions))
    grid = build_grid(records, tasks, attentions, seeds)
    published = (
        published_table(protocol, list(dict.fromkeys(map(task_of, grid.tasks))))
        if scale == "paper"
        else []
    )
    answers = prediction_reader(runs_dir / scale / protocol)
    ranks = standings(grid, answers)
    folder = out_dir / scale / protocol
    folder.mkdir(parents=True, exist_ok=True)
    curves, groups = validated(runs_dir / scale / protocol), group_tables(grid, answers)
    report = Report(grid, scale, protocol, published, ranks, curves, groups, submissions)
    pages = _write_tables(folder, report)
    _write_pictures(folder, report, answers)
    drawn = [file for name in PICTURES if (file := folder / f"{name}.svg").exists()]
    pictures = {file.stem: file.read_text(encoding="utf-8") for file in drawn}
    # JSON may hold half of a surrogate pair, which a UTF-8 file cannot.
    page = whole_page(report, pictures).encode("utf-8", "xmlcharrefreplace")
    (folder / "index.html").write_bytes(page)
    if full:
        return "\n".join(pages) + f"\nWritten to {folder}"
    files = f"Data, machines, settings, deviations: {folder / 'index.html'} and the files beside it"
    return f"{screen(grid, scale, protocol, published, ranks)}\n\n{files}"


def _shown(records: Iterable[Record], only: Selection | None) -> list[Record]:
    """Return the selected records, without those of stand-in data at the paper scale."""
    shown = []
    for record in map(with_departures, records):
        if only is not None and not only.has(record):
            continue
        if (record.scale, record.data_source) == ("paper", "stand-in"):
            name = f"{record.task}/{record.attention}"
            log.warning("left out: %s was trained on stand-in data", name)
            continue
        shown.append(record)
    return shown


def _write_tables(folder: Path, report: Report) -> list[str]:
    """Write the tables as Markdown, CSV and LaTeX; return the Markdown pages."""
    grid, published, ranks = report.grid, report.published, report.standings
    where = (report.scale, report.protocol)
    pages = {
        "accuracy": accuracy_page(
            grid, *where, published, ranks, report.groups, report.submissions
        ),
        "throughput": throughput_page(grid, *where),
    }
    for name, page in pages.items():
        (folder / f"{name}.md").write_text(page, encoding="utf-8")
    write_accuracy_csv(folder / "accuracy.csv", grid, published, ranks, report.submitted)
    write_throughput_csv(folder / "throughput.csv", grid)
    write_length_csv(folder / "accuracy_by_length.csv", grid)
    write_group_csv(folder / "accuracy_by_group.csv", grid)
    texts = latex_tables(grid, *where, ranks, report.groups, report.submissions)
    for name in _LATEX:
        # A stale file would no longer match the tables beside it.
        (folder / f"{name}.tex").unlink(missing_ok=True)
        if name in texts:
            (folder / f"{name}.tex").write_text(texts[name], encoding="utf-8")
    return [*pages.values()]


def _write_pictures(folder: Path, report: Report, answers: Answers) -> None:
    """Write the pictures; remove an earlier one if there is nothing to draw any more."""
    grid = report.grid
    title = heading(grid, report.scale, report.protocol)
    save(accuracy_against_speed(grid, title), folder / "accuracy_vs_speed")
    save(accuracy_against_length(grid, title), folder / "accuracy_by_length")
    save(accuracy_against_group(grid, title), folder / "accuracy_by_group")
    save(learning_curves(grid, title, report.curves), folder / "learning_curves")
    save(heat_map(grid, title, answers), folder / "difference_to_softmax")
