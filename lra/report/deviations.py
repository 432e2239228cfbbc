"""What a protocol does otherwise than the published code, of the cells that a report shows."""

import re
from typing import Any

from lra.compose import groups
from lra.record import Record
from lra.report.grid import TASK_ORDER, Grid


def deviation_lines(grid: Grid) -> list[str]:
    """Return what records say they do otherwise than the published code, a line each."""
    return sorted({line for r in grid.records for line in r.deviations if concerns(line, r)})


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
