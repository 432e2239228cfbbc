"""Build the page: every table and picture of a report in one file, whose cells open their records.

The page needs no network and works from disk, since styles, scripts and pictures are embedded. A
content security policy in its head lets only its own scripts run, whatever a name given by somebody
looks like.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from lra.markdown import Table
from lra.report.curve_figure import Curves
from lra.report.deviations import deviation_lines
from lra.report.effective_range import GroupTables
from lra.report.grid import Grid
from lra.report.notes import (
    ACCURACY,
    LENGTHS,
    RANGES,
    SPEED,
    SUBMITTED,
    explanations,
    heading,
    notes,
    settings_notes,
)
from lra.report.published import beside
from lra.report.submissions import (
    Submission,
    submission_notes,
    submission_table,
    submitted,
)
from lra.report.tables import Standings
from lra.report.web import curve
from lra.report.web.entries import details
from lra.report.web.table import (
    SUBMITTED_ENTRY,
    PageTable,
    accuracy,
    by_groups,
    lengths,
    page_table,
    submissions,
    throughput,
)

_HERE = Path(__file__).parent
# Width in points up to which a picture may stand beside another.
_HALF_ROW = 500
# Captions of the pictures by file name, in the order of the page.
PICTURES = {
    "accuracy_vs_speed": "Accuracy against training speed, with memory as marker area",
    "accuracy_by_length": "Accuracy by length",
    "accuracy_by_group": "Accuracy by group",
    "learning_curves": "Learning curves",
    "difference_to_softmax": "Difference from softmax",
}


@dataclass(frozen=True)
class Report:
    """The content of a report on a scale and protocol.

    Args:
        grid: The entries.
        scale: Scale.
        protocol: Protocol.
        published: Published figures of the protocol; empty if there are none.
        standings: The best entries, and those not significantly worse than them.
        curves: Returns the validations of a record.
        groups: Accuracy by the groups of examples that tasks define, with its tables.
        submissions: Results submitted by others, of any scale and protocol.
    """

    grid: Grid
    scale: str
    protocol: str
    published: Table
    standings: Standings
    curves: Curves
    groups: GroupTables = ()
    submissions: Sequence[Submission] = ()

    @property
    def submitted(self) -> Grid:
        """The results submitted by others for this scale and protocol."""
        return submitted(self.submissions, self.scale, self.protocol)


def whole_page(report: Report, pictures: Mapping[str, str]) -> str:
    """Return the page as HTML.

    Args:
        report: The report to show.
        pictures: SVG by the names in `PICTURES`.
    """
    scripts = [Markup(_asset(name)) for name in ("sortable.js", "page.js")]
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"code": _code, "linked": _linked, "is_wide": _is_wide}
    grid = report.grid
    return environment.get_template("page.html").render(
        title=heading(grid, report.scale, report.protocol),
        style=Markup(_asset("page.css")),
        scripts=scripts,
        policy=_policy(scripts),
        tables=_tables(report),
        departures=grid.departure_lines(),
        submitted=_submitted(report),
        submission_notes=submission_notes(report.submissions, report.submitted, grid),
        published=_published(report),
        pictures=[
            (name, PICTURES[name], _inline(name, pictures[name]))
            for name in PICTURES
            if name in pictures
        ],
        entries=details(grid, report.standings, report.curves)
        # Submissions come without validations.
        + details(report.submitted, {}, lambda record: {}, SUBMITTED_ENTRY),
        notes=notes(grid) + settings_notes(grid),
        deviations=deviation_lines(grid),
        curve=curve,
    )


def _tables(report: Report) -> list[PageTable]:
    """Return the tables of the measurements."""
    grid, ranks = report.grid, report.standings
    remarks = [ACCURACY, *explanations(report.scale, bool(ranks))]
    return [
        accuracy(grid, ranks, remarks),
        throughput(grid, [SPEED]),
        *lengths(grid, [LENGTHS]),
        *by_groups(grid, report.groups, [RANGES]),
    ]


def _submitted(report: Report) -> list[PageTable]:
    """Return the table of the submissions; empty if there are none."""
    table = submission_table(report.submitted)
    return [submissions(report.submitted, table, [SUBMITTED])] if table else []


def _published(report: Report) -> list[PageTable]:
    """Return the tables of the published figures; empty if there are none."""
    if not report.published:
        return []
    figures = f"Published figures, protocol {report.protocol}"
    tables = [page_table("figures", figures, report.published, [])]
    if compared := beside(report.grid, report.protocol):
        title = "Our figures beside published ones, in percent"
        tables.append(page_table("beside", title, compared, [], names=2))
    return tables


def _asset(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _policy(scripts: list[Markup]) -> str:
    """Return the policy on what the page may load and run: only its own embedded parts."""
    hashes = (base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts)
    own = " ".join(f"'sha256-{each}'" for each in hashes)
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {own}"


def _code(text: str) -> Markup:
    """Return a text as HTML, with everything between backticks as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _linked(text: str) -> Markup:
    """Return a text as HTML, with addresses as links."""
    link = r'<a href="\1" rel="noreferrer">\1</a>'
    return Markup(re.sub(r"(https?://\S+)", link, str(escape(text))))


def _is_wide(svg: str) -> bool:
    """Return whether a picture of several panels needs a row of the page to itself."""
    width = re.search(r'<svg [^>]*?\bwidth="([\d.]+)pt"', svg)
    return width is not None and float(width[1]) > _HALF_ROW


def _inline(name: str, svg: str) -> Markup:
    """Return a picture as a part of the page, with names that clash with no other picture."""
    svg = re.sub("<!--.*?-->|<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-")
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-labelledby="{name}-caption" ', 1))
