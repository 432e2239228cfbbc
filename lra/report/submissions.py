"""Read and check results submitted by others for their own backends, shown in their own section.

A submission is one file, `results/submissions/<name>.json`:

    {"name": "<name>", "link": "https://...", "commit": "<of its code>", "records": [...]}

Its records are the `result.json` files that `lra train` wrote.
"""

import csv
import functools
import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lra.compose import groups
from lra.config import config_hash
from lra.markdown import Table
from lra.paths import KNOWN_DATA
from lra.record import Record, RecordError, checked_record, contradiction
from lra.report.grid import Grid, build_grid
from lra.report.tables import accuracy_table
from lra.words import printable

log = logging.getLogger(__name__)

SUFFIX = ".json"
KEYS = ("name", "link", "commit", "records")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LINK = re.compile(r"https?://[^\s<>\"']+")
_COMMIT = re.compile(r"[0-9a-f]{7,40}")
# What a record is called and where it ran does not make it another result.
_NAMES_AND_PLACES = ("variant", "device", "threads")


class SubmissionError(ValueError):
    """Raised if a file is not a submission; the message names the file and the key."""


@dataclass(frozen=True)
class Submission:
    """Results submitted by somebody.

    Args:
        name: Its name, which is that of its file.
        link: Address of its code.
        commit: Commit of that code.
        records: The records, at least one.
    """

    name: str
    link: str
    commit: str
    records: tuple[Record, ...]

    @property
    def named(self) -> list[Record]:
        """The records, with the name of the submission before the names of their backends."""
        return [replace(r, attention=f"{self.name}: {r.attention}") for r in self.records]


def read_submission(file: Path) -> Submission:
    """Read a submission and check its form.

    Raises:
        SubmissionError: The file is not a submission; the message names the file and the key.
    """
    if file.suffix != SUFFIX:
        raise SubmissionError(f"{file}: must end in {SUFFIX}; reports read no other files")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SubmissionError(f"{file}: not readable as JSON ({error})") from error
    if not isinstance(values, dict) or values.keys() != set(KEYS):
        found = ", ".join(values) if isinstance(values, dict) else type(values).__name__
        found = printable(found)
        raise SubmissionError(f"{file}: has {found}, must have {', '.join(KEYS)}")
    if values["name"] != file.stem:
        raise SubmissionError(
            f"{file}: name={values['name']!r} must be the name of its file, {file.stem!r}"
        )
    forms = (
        ("name", _NAME, "letters, digits and . _ -, at most 64"),
        ("link", _LINK, "the https:// address of its code"),
        ("commit", _COMMIT, "7 to 40 hex digits of a commit"),
    )
    for key, form, wanted in forms:
        if not isinstance(values[key], str) or not form.fullmatch(values[key]):
            raise SubmissionError(f"{file}: {key}={values[key]!r} must be {wanted}")
    return Submission(values["name"], values["link"], values["commit"], _records(file, values))


def _records(file: Path, values: dict[str, Any]) -> tuple[Record, ...]:
    found = values["records"]
    if not isinstance(found, list) or not found:
        raise SubmissionError(f"{file}: records must be a list of at least one record")
    try:
        return tuple(
            checked_record(each, f"{file}: record {number}") for number, each in enumerate(found, 1)
        )
    except RecordError as error:
        raise SubmissionError(str(error)) from error


@functools.cache
def known_data() -> tuple[dict[str, str], ...]:
    """Return the known data sets, one dict of strings per line of `known_data.csv`."""
    with open(KNOWN_DATA, newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


def problems(submission: Submission, others: Iterable[Submission] = ()) -> list[str]:
    """Return the reasons why a submission cannot be shown, one line each; empty if it can.

    Args:
        submission: The submission.
        others: The existing submissions; one of the same name is this one.
    """
    found = []
    for number, record in enumerate(submission.records, 1):
        where = f"record {number} ({'/'.join(record.place)})"
        found += [f"{where}: {line}" for line in (*_of_data(record), *_of_record(record))]
    there = {_cell(r): s.name for s in others if s.name != submission.name for r in s.records}
    seen: dict[tuple[str, ...], int] = {}
    for number, record in enumerate(submission.records, 1):
        keys = _cell(record), (record.scale, record.protocol, *record.place)
        if (first := min(seen.setdefault(key, number) for key in keys)) != number:
            found.append(f"record {number}: repeats record {first}")
        if _cell(record) in there:
            found.append(f"record {number}: is already in submission {there[_cell(record)]}")
    for key in ("parameters", "attention_source"):
        values: dict[tuple[str, ...], set[str]] = {}
        for record in submission.records:
            cell = (record.scale, record.protocol, *record.place[:3])
            values.setdefault(cell, set()).add(str(getattr(record, key)))
        found += [
            f"{'/'.join(cell)}: {key}={' and '.join(sorted(several))} differ between seeds"
            for cell, several in values.items()
            if len(several) > 1
        ]
    return found


def _cell(record: Record) -> tuple[str, ...]:
    """Return a key that records of one cell share, whatever they are named and where they ran."""
    config = {key: value for key, value in record.config.items() if key not in _NAMES_AND_PLACES}
    return config_hash(config), record.attention_source, record.data_fingerprint, str(record.seed)


def _of_record(record: Record) -> Iterator[str]:
    """Yield the faults of a record taken by itself."""
    if record.status != "ok":
        yield f"status={record.status!r} must be 'ok'"
    if record.attention in groups().options("attention"):
        yield f"attention={record.attention!r} is the suite's own; must be one of your backends"
    if record.protocol not in (there := groups().options("protocol")):
        yield f"protocol={record.protocol!r} must be one of {', '.join(there)}"
    if record.config_hash != (right := config_hash(record.config)):
        yield f"config_hash={record.config_hash!r} must be {right!r}, the hash of its config"
    if wrong := contradiction(record):
        yield wrong
    if not record.parameters:
        yield "parameters=0 must be at least 1"
    if record.data_skipped_rows:
        yield f"data_skipped_rows={record.data_skipped_rows} must be 0"


def _of_data(record: Record) -> Iterator[str]:
    """Yield the faults of the data that a record was trained on."""
    rows = [row for row in known_data() if row["task"] == record.task]
    known = [row for row in rows if row["fingerprint"] == record.data_fingerprint]
    # Published data that this project never had are recognised by their content when built.
    known += [row for row in rows if not row["fingerprint"] and row["source"] == record.data_source]
    if not known:
        there = ", ".join(f"{row['fingerprint'][:8] or '-'} ({row['about']})" for row in rows)
        wanted = f"must be one of {there}" if there else "no data of that task are known"
        start = f"{record.data_fingerprint[:16]!r} ({record.data_source})"
        yield f"data_fingerprint={start} is not known; {wanted}"
        return
    row = known[0]
    if record.data_source != row["source"]:
        yield f"data_source={record.data_source!r} must be {row['source']!r}"
    if record.scale not in (scales := row["scales"].split()):
        yield f"scale={record.scale!r} must be {' or '.join(scales)}, the scale of its data"
    if record.test_total is not None and record.test_total != int(row["test_total"]):
        yield f"test_total={record.test_total} must be {row['test_total']}, the whole test set"
    rate, right = record.test_majority_rate, row["majority_rate"]
    if rate is not None and right and not math.isclose(rate, float(right), abs_tol=5e-5):
        yield f"test_majority_rate={rate:.4f} must be {float(right):.4f}"


def read_submissions(folder: Path) -> list[Submission]:
    """Return the submissions in a folder that can be shown, by name; log the others."""
    found: list[Submission] = []
    for file in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            each = read_submission(file)
        except SubmissionError as error:
            log.warning("left out: %s", error)
            continue
        if wrong := problems(each, found):
            log.warning("left out: %s: %s", file, printable(wrong[0]))
        else:
            found.append(each)
    return found


def submitted(submissions: Sequence[Submission], scale: str, protocol: str) -> Grid:
    """Return the submitted entries of a scale and protocol, one row per submission and backend."""
    records = [record for each in submissions for record in each.named]
    return build_grid([r for r in records if (r.scale, r.protocol) == (scale, protocol)])


def submission_table(grid: Grid) -> Table:
    """Return the submitted accuracies in percent, with parameters; empty if there is no entry."""
    if not grid.entries:
        return []
    header, *rows = accuracy_table(grid)
    sizes = []
    for method in grid.methods:
        counts = {e.records[0].parameters for (_, m), e in grid.entries.items() if m == method}
        sizes.append("–".join(f"{each:,}" for each in sorted({min(counts), max(counts)})))
    # The last row is the majority class, which has no parameters.
    ends = [*sizes, "-"]
    body = [[*row, end] for row, end in zip(rows, ends, strict=True)]
    return [["submission", *header[1:], "parameters"], *body]


def submission_notes(submissions: Sequence[Submission], submitted: Grid, ours: Grid) -> list[str]:
    """Return the notes that a reader needs for the submissions, one line each."""
    shown = {method.attention.partition(":")[0] for method in submitted.methods}
    lines = [
        f"{each.name}: {each.link} at commit {each.commit}."
        for each in submissions
        if each.name in shown
    ]
    here = {record.task: set[str]() for record in ours.records}
    for record in ours.records:
        here[record.task].add(record.data_fingerprint)
    other = {
        (r.task, r.data_description, r.data_fingerprint[:16])
        for r in submitted.records
        if r.task in here and r.data_fingerprint not in here[r.task]
    }
    lines += [
        f"The results submitted for {task} use different data from ours ({about}, sha256 {number}):"
        " they are not comparable."
        for task, about, number in sorted(other)
    ]
    return lines + submitted.departure_lines()
