"""Collect what a cell of the page opens: an entry's records, configuration and learning curve."""

import json
from dataclasses import asdict, dataclass

from lra.markdown import Table
from lra.record import Method, Record
from lra.report.curve_figure import Curves
from lra.report.grid import Entry, Grid
from lra.report.tables import THROUGHPUT, Standings
from lra.report.web.curve import Drawing, draw
from lra.report.web.table import entry_name
from lra.stamp import version_text
from lra.variant import flat


@dataclass(frozen=True)
class Details:
    """Details shown for an entry.

    Args:
        name: Its name in the page.
        title: Task and method.
        facts: Names and values of the facts that hold for all its seeds together.
        seeds: One row per seed.
        curve: Its learning curve; None if no validations were kept.
        config: Every value of its configuration, one line each.
        records: The records by seed, without their configuration.
    """

    name: str
    title: str
    facts: list[tuple[str, str]]
    seeds: Table
    curve: Drawing | None
    config: str
    records: list[tuple[int, str]]


def details(grid: Grid, standings: Standings, curves: Curves, kind: str = "entry") -> list[Details]:
    """Return the details of every entry, in the order of the tables."""
    return [
        Details(
            entry_name(grid, task, method, kind),
            f"{grid.label(task)}: {grid.name(method, task)}",
            _facts(grid, task, method, entry, standings),
            _seeds(entry),
            draw({record.seed: curves(record) for record in entry.records}),
            _config(entry),
            [(record.seed, _without_config(record)) for record in entry.records],
        )
        for task in grid.tasks
        for method in grid.methods
        if (entry := grid.entry(task, method)) is not None
    ]


def _facts(
    grid: Grid, task: str, method: Method, entry: Entry, standings: Standings
) -> list[tuple[str, str]]:
    """Return the named facts that hold for all seeds together."""
    facts = [("test accuracy", entry.accuracy_text)]
    if standing := standings.get((task, method)):
        test = f" ({standing.test})" if standing.test else ""
        facts.append(("compared", f"{standing.place}{test}"))
    facts += [("departs from its recipe", text) for text in entry.departures]
    if entry.finished:
        facts.append(("majority class", f"{entry.majority_rate:.1f}"))
        shown = ((c.title, c.shown(grid, task, method, entry)) for c in THROUGHPUT)
        facts += [(title, text) for title, text in shown if text]
    return facts


def _seeds(entry: Entry) -> Table:
    """Return one row per seed."""
    table = [["seed", "test accuracy", "right", "chosen at", "updates", "minutes", "commit"]]
    for r in entry.records:
        commit = version_text(r.commit, r.dirty, 12)
        ends = [f"{r.steps:,}", f"{r.seconds / 60:.1f}", commit]
        if r.test_accuracy is None:
            table.append([str(r.seed), f"failed: {r.reason}", "-", "-", *ends])
            continue
        right = f"{r.test_correct:,} of {r.test_total:,}"
        chosen = f"{r.best_step:,}"
        table.append([str(r.seed), f"{100 * r.test_accuracy:.2f}", right, chosen, *ends])
    return table


def _config(entry: Entry) -> str:
    """Return every value of a configuration, one line each; all values if seeds differ."""
    values: dict[str, list[str]] = {}
    for record in entry.records:
        for key, value in flat(record.config, keep_empty=True):
            text = json.dumps(value, ensure_ascii=False)
            if text not in values.setdefault(key, []):
                values[key].append(text)
    return "\n".join(f"{key}: {', '.join(texts)}" for key, texts in sorted(values.items()))


def _without_config(record: Record) -> str:
    values = asdict(record)
    del values["config"]
    return json.dumps(values, indent=1, ensure_ascii=False)
