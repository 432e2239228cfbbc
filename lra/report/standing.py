"""Which method is best on a task, and which cannot be told from it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lra.predictions import Predictions, read_predictions
from lra.record import Method, Record
from lra.report.grid import Entry, Grid
from lra.report.significance import LEVEL, difference_interval, mcnemar, paired_t

Answers = Callable[[Record], Predictions | None]

BEST, AS_BEST, WORSE = "best", "not told from best", "worse than best"
MARKS = {BEST: " best", AS_BEST: " ≈ best", WORSE: ""}
EXPLAINED = (
    "`best` is the highest mean; `≈ best` cannot be told from it, which is not to say that it is as"
    f" good: p at least {LEVEL} in Student's t test paired over common seeds; with one seed in"
    " common, in McNemar's exact test over the stored test predictions; where these are missing,"
    f" zero within the {1 - LEVEL:.0%} interval (Newcombe) of the difference. Nothing is marked"
    " where the best is at chance; tests are not corrected for their number."
)


@dataclass(frozen=True)
class Standing:
    """How an entry compares with the best of its task.

    Args:
        place: `best`, `not told from best` or `worse than best`.
        test: The test that decided, with its outcome; empty for the best.
    """

    place: str
    test: str = ""


def stored(folder: Path) -> Answers:
    """Return what reads the test predictions of a record.

    Args:
        folder: Run folders of a scale and protocol.
    """

    def answers(record: Record) -> Predictions | None:
        there = folder.joinpath(*record.place)
        return read_predictions(there, record.test_correct, record.test_total)

    return answers


def standings(
    grid: Grid, answers: Answers = lambda record: None
) -> dict[tuple[str, Method], Standing]:
    """Return how the entries compare, by task and method; none where nothing can be compared.

    Args:
        grid: The entries. Those of one column are of the same data.
        answers: Gives the test predictions of a record, None where there are none.
    """
    found = {}
    for task in grid.tasks:
        entries = {method: entry for method, entry in grid.of(task).items() if entry.accuracies}
        if len(entries) < 2:
            continue
        best = max(entries, key=lambda method: entries[method].mean or 0.0)
        if entries[best].at_chance:
            continue
        for method, entry in entries.items():
            told = Standing(BEST) if method == best else against(entries[best], entry, answers)
            found[task, method] = told
    return found


def against(best: Entry, other: Entry, answers: Answers = lambda record: None) -> Standing:
    """Return how an entry compares with the best, by the strongest test that there is."""
    first = {record.seed: record for record in best.finished}
    second = {record.seed: record for record in other.finished}
    common = sorted(first.keys() & second.keys())
    if len(common) > 1:
        pairs = [(first[seed].test_accuracy, second[seed].test_accuracy) for seed in common]
        p = paired_t([(a or 0.0) - (b or 0.0) for a, b in pairs])
        return _told(p < LEVEL, f"paired t over {len(common)} seeds, p = {p:.2g}")
    if common:
        alone = discordant(first[common[0]], second[common[0]], answers)
        if alone is not None:
            p = mcnemar(*alone)
            return _told(p < LEVEL, f"McNemar, seed {common[0]}, p = {p:.2g}")
    low, high = difference_interval(_counts(best), _counts(other))
    interval = f"difference {100 * low:.1f} to {100 * high:.1f} points"
    return _told(not low <= 0 <= high, interval)


def discordant(first: Record, second: Record, answers: Answers) -> tuple[int, int] | None:
    """Return how many test examples only the first has right, and how many only the second.

    None where predictions are missing, or not of the same examples.
    """
    a, b = answers(first), answers(second)
    if a is None or b is None or not np.array_equal(a.labels, b.labels):
        return None
    return int((a.right & ~b.right).sum()), int((b.right & ~a.right).sum())


def _told(apart: bool, test: str) -> Standing:
    return Standing(WORSE if apart else AS_BEST, test)


def _counts(entry: Entry) -> tuple[int, int]:
    """Return right answers and answers of an entry's first seed: seeds share their examples."""
    record = entry.finished[0]
    return record.test_correct or 0, record.test_total or 1
