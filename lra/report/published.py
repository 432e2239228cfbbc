"""Set published figures beside ours: same protocol, task and method, with difference and source."""

import csv
import functools

from lra.markdown import Table
from lra.paths import PUBLISHED
from lra.record import Method
from lra.report.grid import Grid, task_of

# Names of the backends in papers. A variant has no published figure of its own.
NAMES = {
    "softmax": ("Transformer",),
    "fourier": ("FNet",),
    "linear": ("Linear Transformer",),
    "performer": ("Performer",),
    "linformer": ("Linformer",),
    "longformer": ("Longformer",),
    "bigbird": ("BigBird",),
    "nystromformer": ("Nystromformer",),
    "reformer": ("Reformer",),
    "mega": ("MEGA",),
    "lru": ("LRU",),
    "s5": ("S5",),
    "s4d": ("S4D",),
    "wavspa": ("WavSpA-Ada Transformer",),
}
# Authors of each protocol, as the column `family` names them.
AUTHORS = {
    "lra": "LRA-original",
    "nystromformer": "mlpen",
    "wavspa": "WavSpA",
    "mega": "Mega/Luna fairseq",
    "lru": "LRU paper",
}
# Authors who retrained the methods of others under a protocol, and their own method.
RERUN = {"Skyformer": "Skyformer", "FNet-paper (LRA JAX code)": "FNet"}
HEADER = ("task", "attention", "ours", "published", "difference", "run by", "source")


@functools.cache
def figures() -> tuple[dict[str, str], ...]:
    """Return the published accuracies, one dict of strings per line of `results/published.csv`."""
    with open(PUBLISHED, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        return tuple(row for row in rows if row["metric"] == "accuracy_pct")


def run_by(row: dict[str, str]) -> str:
    """Return, as text, who ran a published result, by the notes of `results/published.csv`."""
    if "second-hand" in row["note"] or "copied from earlier papers" in row["note"]:
        return "copied by its source"
    if RERUN.get(row["family"], row["method"]) != row["method"]:
        return "re-run by others"
    return "authors of the protocol" if AUTHORS.get(row["protocol"]) == row["family"] else "others"


def beside(grid: Grid, protocol: str) -> Table:
    """Return our figures beside published ones, one row per pair; empty if nothing was published.

    Entries that depart from their recipe, or that use stand-in data, are not compared.
    """
    rows = []
    for column in grid.tasks:
        for method, entry in grid.of(column).items():
            compares = method == Method(method.attention) and not entry.departures
            if entry.mean is None or not compares or _is_made_up(entry.finished[0].data_source):
                continue
            for row in figures():
                # What a paper trained again under its own protocol, it trained with other models.
                name = row["method"].removesuffix(" (theirs)")
                same = (row["protocol"], row["task"]) == (protocol, task_of(column))
                if not same or name not in NAMES.get(method.attention, ()):
                    continue
                there = float(row["value"])
                n = len(entry.finished)
                ours = f"{entry.mean:.2f}" + f" (n={n})" * (n > 1)
                numbers = [ours, f"{there:.2f}", f"{entry.mean - there:+.2f}"]
                rows.append([column, str(method), *numbers, run_by(row), row["source"]])
    return [[*HEADER], *rows] if rows else []


def _is_made_up(source: str) -> bool:
    return source not in ("published", "generated")
