"""What a cell of the page opens: an entry's records, configuration and learning curve."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from lra.markdown import Table
from lra.record import Method, Record
from lra.report.curve_figure import Curves
from lra.report.grid import Entry, Grid
from lra.report.tables import THROUGHPUT, Standings
from lra.report.web.curve import Drawing, draw
from lra.report.web.table import entry_name


@dataclass(frozen=True)
class Details:
    """What is shown of an entry.

    Args:
        name: Its name in the page.
        title: Task and method.
        facts: Names and values of what holds for all its seeds together.
        seeds: A row for each seed.
        curve: Its learning curve; None where no validations were kept.
        config: Every value of its configuration, a line each.
        records: The records, the configuration left out, by seed.
    """

    name: str
    title: str
    facts: list[tuple[str, str]]
    seeds: Table
    curve: Drawing | None
    config: str
    records: list[tuple[int, str]]


def details(grid: Grid, standings: Standings, curves: Curves, kind: str = "entry") -> list[Details]:
    """Return what is shown of every entry, in the order of the tables."""
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
    """Return what holds for all seeds together, with its names."""
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
    """Return a row for each seed."""
    table = [["seed", "test accuracy", "right", "chosen at", "updates", "minutes", "commit"]]
    for r in entry.records:
        commit = (r.commit[:12] or "unknown") + (" with local changes" if r.dirty else "")
        ends = [f"{r.steps:,}", f"{r.seconds / 60:.1f}", commit]
        if r.test_accuracy is None:
            table.append([str(r.seed), f"failed: {r.reason}", "-", "-", *ends])
            continue
        right = f"{r.test_correct:,} of {r.test_total:,}"
        chosen = f"{r.best_step:,}"
        table.append([str(r.seed), f"{100 * r.test_accuracy:.2f}", right, chosen, *ends])
    return table


def _config(entry: Entry) -> str:
    """Return every value of a configuration, a line each; of seeds that differ, all of them."""
    values: dict[str, list[str]] = {}
    for record in entry.records:
        for key, value in _flat(record.config):
            text = json.dumps(value, ensure_ascii=False)
            if text not in values.setdefault(key, []):
                values[key].append(text)
    return "\n".join(f"{key}: {', '.join(texts)}" for key, texts in sorted(values.items()))


def _flat(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield keys such as train.steps with their values."""
    if not isinstance(node, dict) or not node:
        yield key, node
        return
    for name, below in node.items():
        yield from _flat(below, f"{key}.{name}" if key else str(name))


def _without_config(record: Record) -> str:
    values = asdict(record)
    del values["config"]
    return json.dumps(values, indent=1, ensure_ascii=False)
