"""Deviations of a protocol from the published code, for the cells that a report shows."""

import re
from typing import Any

from lra.compose import groups
from lra.record import Record
from lra.report.grid import TASK_ORDER, Grid


def deviation_lines(grid: Grid) -> list[str]:
    """Return the deviations from the published code that the records state, one line each."""
    return sorted({line for r in grid.records for line in r.deviations if concerns(line, r)})


# Names of tasks as deviations begin with them.
_TASKS = {name.lower().replace("-", "") for name in TASK_ORDER}


def concerns(deviation: str, record: Record) -> bool:
    """Return whether a deviation concerns a record's task and backend.

    A deviation that begins with the name of a task concerns that task and every other task that it
    names; one that begins with the name of a backend concerns that backend; any other concerns all
    records.
    """
    words = [re.sub(r"'s$|[^a-z0-9_]", "", word.lower()) for word in deviation.split()]
    subject = words[0] if words else ""
    if subject in _TASKS:
        return record.task not in _TASKS or record.task in words
    if subject in groups().options("attention"):
        return subject in _backends(record.config.get("attention")) | {record.attention}
    return True


def _backends(attention: Any) -> set[str]:
    """Return the names of a backend and of the backends nested in it."""
    if not isinstance(attention, dict):
        return set()
    return {str(attention.get("name"))} | _backends(attention.get("inner"))
