"""Build the tables of the page: what each cell shows, sorts by and links to."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lra.markdown import Table
from lra.record import Method
from lra.report.effective_range import GroupTables
from lra.report.grid import Grid
from lra.report.lengths import by_length, length_table
from lra.report.standing import AS_BEST, BEST
from lra.report.tables import THROUGHPUT, Standings, accuracy_table, throughput_table

_NUMBER = re.compile(r"[+-]?[\d,]*\.?\d+")
# Columns of text that are sorted by the whole text.
_TEXTS = ("run by", "source")
# Prefix of the names of submitted entries.
SUBMITTED_ENTRY = "submitted"
_KINDS = {BEST: "best", AS_BEST: "as-best"}


@dataclass(frozen=True)
class Cell:
    """A cell of the page.

    Args:
        text: The text to show.
        sort: The key to sort by; an empty key comes last in either direction.
        link: The entry that the cell opens; empty if none.
        kind: `name`, `number`, `words` or `long`, or the standing: `best` or `as-best`.
    """

    text: str
    sort: str
    link: str = ""
    kind: str = "words"


@dataclass(frozen=True)
class PageTable:
    """A table of the page.

    Args:
        name: Its name in the page.
        title: Its title.
        about: Paragraphs about the table, in Markdown limited to code spans.
        header: Titles of the columns.
        body: Rows that can be sorted and filtered.
        foot: Rows that stay below them.
    """

    name: str
    title: str
    about: list[str]
    header: list[str]
    body: list[list[Cell]]
    foot: list[list[Cell]]


def entry_name(grid: Grid, task: str, method: Method, kind: str = "entry") -> str:
    """Return the name of an entry in the page; names given by users may not be valid there."""
    return f"{kind}-{1 + grid.tasks.index(task)}-{1 + grid.methods.index(method)}"


def page_table(
    name: str,
    title: str,
    table: Table,
    about: list[str],
    names: int = 1,
    foot: int = 0,
    cells: Mapping[tuple[int, int], Cell] | None = None,
) -> PageTable:
    """Return a table, in the form that all formats share, as a table of the page.

    Args:
        name: Its name in the page.
        title: Its title.
        table: The table, whose first row is the header.
        about: Paragraphs about the table.
        names: Number of leading columns that hold names and are sorted by them.
        foot: Number of last rows that stay below the others.
        cells: Cells that differ from what their text alone would give, by row and column from 0.
    """
    special = cells or {}

    def cell(row: int, column: int, text: str) -> Cell:
        if (row, column) in special:
            return special[row, column]
        if column < names:
            return Cell(text, text.lower(), kind="name")
        if table[0][column] in _TEXTS:
            return Cell(text, text.lower(), kind="long" if len(text) > 30 else "words")
        number = _NUMBER.match(text)
        sort = number[0].replace(",", "").lstrip("+") if number else ""
        return Cell(text, sort, kind="number" if number else "words")

    rows = [[cell(i, k, text) for k, text in enumerate(row)] for i, row in enumerate(table)]
    end = len(rows) - foot
    return PageTable(name, title, about, table[0], rows[1:end], rows[end:])


def accuracy(grid: Grid, standings: Standings, about: list[str]) -> PageTable:
    """Return the accuracy table, whose cells open their entries."""
    table = accuracy_table(grid, standings)
    cells = _openers(grid, table, standings, "entry")
    return page_table("accuracy", "Accuracy", table, about, foot=1, cells=cells)


def submissions(grid: Grid, table: Table, about: list[str]) -> PageTable:
    """Return the table of submissions, whose cells open their entries."""
    cells = _openers(grid, table, {}, SUBMITTED_ENTRY)
    return page_table("submissions", "Submissions", table, about, foot=1, cells=cells)


def _openers(
    grid: Grid, table: Table, standings: Standings, kind: str
) -> dict[tuple[int, int], Cell]:
    """Return the cells of a table of methods by tasks, each of which opens its entry."""
    cells = {}
    for (task, method), entry in grid.entries.items():
        row, column = 1 + grid.methods.index(method), 1 + grid.tasks.index(task)
        standing = standings.get((task, method))
        cells[row, column] = Cell(
            table[row][column],
            "" if entry.mean is None else f"{entry.mean:.6f}",
            entry_name(grid, task, method, kind),
            _KINDS.get(standing.place, "number") if standing else "number",
        )
    return cells


def throughput(grid: Grid, about: list[str]) -> PageTable:
    """Return the table of speed and memory, whose method names open their entries."""
    table = throughput_table(grid)
    cells = {}
    both = [(task, method) for task in grid.tasks for method in grid.methods]
    for row, (task, method) in enumerate(both, 1):
        entry = grid.entry(task, method)
        if entry is None:
            continue
        name = table[row][1]
        cells[row, 1] = Cell(name, name.lower(), entry_name(grid, task, method), "name")
        for place, column in enumerate(THROUGHPUT, 2):
            if entry.finished:
                value = column.value(grid, task, method, entry)
                sort = "" if value is None else str(value)
                cells[row, place] = Cell(table[row][place], sort, kind="number")
    return page_table("speed", "Speed and memory", table, about, names=2, cells=cells)


def lengths(grid: Grid, about: list[str]) -> list[PageTable]:
    """Return accuracy by length, one table per task that has it; names open their entries."""
    return [
        page_table(
            f"lengths-{number}",
            f"{grid.label(each.task)}: accuracy by length, in percent",
            table := length_table(grid, each),
            about,
            foot=1,
            cells=_names(grid, each.task, list(each.shares), table),
        )
        for number, each in enumerate(by_length(grid), 1)
    ]


def by_groups(grid: Grid, groups: GroupTables, about: list[str]) -> list[PageTable]:
    """Return accuracy by groups of examples, one table per task that has them."""
    return [
        page_table(
            f"groups-{number}",
            f"{grid.label(binned.task)}: accuracy by {binned.quantity}, in percent",
            table,
            about,
            foot=1,
            cells=_names(grid, binned.task, list(binned.shares), table),
        )
        for number, (binned, table) in enumerate(groups, 1)
    ]


def _names(
    grid: Grid, task: str, methods: Sequence[Method], table: Table
) -> dict[tuple[int, int], Cell]:
    """Return the cells of the method names in a table's rows, each of which opens its entry."""
    names = [row[0] for row in table[1:]]
    return {
        (row, 0): Cell(name, name.lower(), entry_name(grid, task, method), "name")
        for row, (name, method) in enumerate(zip(names, methods, strict=False), 1)
    }
