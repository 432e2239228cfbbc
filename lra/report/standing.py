"""Determine the best method on a task, and those not significantly worse than it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lra.predictions import Predictions, read_predictions
from lra.record import Method, Record
from lra.report.grid import Entry, Grid
from lra.report.significance import (
    LEVEL,
    all_equal,
    difference_interval,
    mcnemar,
    p_in_words,
    paired_t,
)

Answers = Callable[[Record], Predictions | None]

BEST, AS_BEST, WORSE = "best", "not significantly worse than best", "worse than best"
MARKS = {BEST: " best", AS_BEST: " ≈ best", WORSE: ""}
EXPLAINED = (
    "`best` marks the highest mean. `≈ best` marks a mean that is not significantly below it, which"
    f" does not show that it is as good: p is at least {LEVEL} in Student's t test paired over"
    " common seeds (in the sign test if they all differ by the same amount) or, with one seed in"
    " common, in McNemar's exact test on the stored test predictions; if these are missing, or if"
    f" each has one seed and not the same, the {1 - LEVEL:.0%} interval (Newcombe) of the"
    " difference contains zero. Several seeds with none in common are not tested and are marked"
    " `≈ best` too. Nothing is marked if the best is at chance. The tests are not corrected for"
    " multiple comparisons."
)


@dataclass(frozen=True)
class Standing:
    """How an entry compares with the best of its task.

    Args:
        place: `best`, `not significantly worse than best` or `worse than best`.
        test: The test that decided, with its outcome; empty for the best.
    """

    place: str
    test: str = ""


@dataclass(frozen=True)
class Outcome:
    """The result of comparing two entries.

    Args:
        better: 1 if the first is significantly better, -1 if the second is, 0 if neither is.
        test: The test that decided, with its outcome.
    """

    better: int
    test: str


def prediction_reader(folder: Path) -> Answers:
    """Return a function that reads the test predictions of a record.

    Args:
        folder: Folder of the runs of a scale and protocol.
    """

    def answers(record: Record) -> Predictions | None:
        there = folder.joinpath(*record.place)
        return read_predictions(there, record.test_correct, record.test_total)

    return answers


def standings(
    grid: Grid, answers: Answers = lambda record: None
) -> dict[tuple[str, Method], Standing]:
    """Return how the entries compare, by task and method; nothing for tasks without a comparison.

    Args:
        grid: The entries. All entries of a column use the same data.
        answers: Returns the test predictions of a record, or None if there are none.
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
            if method == best:
                found[task, method] = Standing(BEST)
                continue
            outcome = compared(entries[best], entry, answers)
            # The best has the highest mean over all of its seeds; on the common ones it may lose.
            found[task, method] = Standing(WORSE if outcome.better > 0 else AS_BEST, outcome.test)
    return found


def compared(first: Entry, second: Entry, answers: Answers = lambda record: None) -> Outcome:
    """Compare two entries of a task by the strongest test that their records allow."""
    ours = {record.seed: record for record in first.finished}
    theirs = {record.seed: record for record in second.finished}
    common = sorted(ours.keys() & theirs.keys())
    if common:
        ones, others = ([side[seed] for seed in common] for side in (ours, theirs))
        alone = discordant(ones[0], others[0], answers) if len(common) == 1 else None
        return tested(ones, others, alone)
    if len(ours) == len(theirs) == 1:
        return tested([*ours.values()], [*theirs.values()])
    return Outcome(0, "not tested, no seed in common")


def tested(
    first: Sequence[Record], second: Sequence[Record], alone: tuple[int, int] | None = None
) -> Outcome:
    """Compare two methods on a task.

    Args:
        first: The first method's records, at least one.
        second: The second method's records; if there are several, for the same seeds.
        alone: Number of test examples that only the first method answers correctly, and that only
            the second does, if there is one seed and both predictions are stored.
    """
    if len(first) > 1:
        pairs = zip(first, second, strict=True)
        differences = [(a.test_accuracy or 0.0) - (b.test_accuracy or 0.0) for a, b in pairs]
        p = paired_t(differences)
        name = "signs" if all_equal(differences) else "paired t"
        test = f"{name} over {len(first)} seeds, {p_in_words(p)}"
        return Outcome(_sign(sum(differences)) if p < LEVEL else 0, test)
    if alone is not None:
        p = mcnemar(*alone)
        test = f"McNemar, seed {first[0].seed}, {p_in_words(p)}"
        return Outcome(_sign(alone[0] - alone[1]) if p < LEVEL else 0, test)
    low, high = difference_interval(correct(first[0]), correct(second[0]))
    interval = f"difference {100 * low:.1f} to {100 * high:.1f} points"
    return Outcome(0 if low <= 0 <= high else _sign(low), interval)


def discordant(first: Record, second: Record, answers: Answers) -> tuple[int, int] | None:
    """Return how many test examples only the first, and only the second, answers correctly.

    Returns None if predictions are missing or not of the same examples.
    """
    a, b = answers(first), answers(second)
    if a is None or b is None or not np.array_equal(a.labels, b.labels):
        return None
    return int((a.right & ~b.right).sum()), int((b.right & ~a.right).sum())


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


def correct(record: Record) -> tuple[int, int]:
    """Return how many test examples a record has right, and how many there are."""
    return record.test_correct or 0, record.test_total or 1
