"""Determine the best method on a task, and those not significantly worse than it."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lra.predictions import Predictions, read_predictions
from lra.record import Method, Record
from lra.report.grid import Entry, Grid
from lra.report.significance import (
    LEVEL,
    NORMAL,
    all_equal,
    difference_interval,
    mcnemar,
    p_in_words,
    p_of_mean,
    paired_t,
    student,
)

Answers = Callable[[Record], Predictions | None]

BEST, AS_BEST, WORSE = "best", "not significantly worse than best", "worse than best"
UNTESTED = "not tested against best"
MARKS = {BEST: " best", AS_BEST: " ≈ best", WORSE: "", UNTESTED: " (not tested)"}
IN_SHORT = (
    "n: number of seeds; best: the highest mean; ≈ best: not significantly below it; not tested:"
    " seeds differ from the best's, or there are only two; at chance: not above the majority class."
)
EXPLAINED = (
    "`best` marks the highest mean. `≈ best` marks a mean that is not significantly below it, which"
    f" does not show that it is as good. For one seed, the test is McNemar's exact test ({LEVEL})"
    " on the stored test predictions, which concerns these two trained models, not what other seeds"
    f" would give. For three seeds or more, the {1 - LEVEL:.0%} interval of the difference decides."
    " It adds two errors in quadrature: that of the mean over the seeds (Student's t, paired), and"
    " that of the test set, which all seeds share; if all seeds differ by the same amount, the sign"
    " test has to agree. If predictions are missing, one seed is judged by Newcombe's interval, and"
    " several by Student's alone. `not tested` marks cells whose seeds differ from those of the"
    " best, and cells of two seeds, too few for a useful test. Nothing is marked if the best is at"
    " chance. The tests are not corrected for multiple comparisons."
)
TWO_SEEDS = "not tested, two seeds"


@dataclass(frozen=True)
class Standing:
    """How an entry compares with the best of its task.

    Args:
        place: `BEST`, `AS_BEST`, `WORSE` or `UNTESTED`.
        test: The test that decided, with its outcome; empty for the best.
    """

    place: str
    test: str = ""


@dataclass(frozen=True)
class Outcome:
    """The result of comparing two entries.

    Args:
        better: 1 if the first is significantly better, -1 if the second is, 0 if neither is; None
            if the records do not allow a test.
        test: The test that decided, with its outcome.
    """

    better: int | None
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
            if not _have_equal_seeds(entries[best], entry):
                # The test would be of other means than those of the table.
                found[task, method] = Standing(UNTESTED, "other seeds")
                continue
            outcome = compared(entries[best], entry, answers)
            place = UNTESTED if outcome.better is None else WORSE if outcome.better else AS_BEST
            found[task, method] = Standing(place, outcome.test)
    return found


def _have_equal_seeds(first: Entry, second: Entry) -> bool:
    """Return whether two entries have the same seeds, or one each."""
    return first.seeds == second.seeds or len(first.seeds) == len(second.seeds) == 1


def compared(first: Entry, second: Entry, answers: Answers = lambda record: None) -> Outcome:
    """Compare two entries of a task, over the seeds that both have."""
    ours = {record.seed: record for record in first.finished}
    theirs = {record.seed: record for record in second.finished}
    common = sorted(ours.keys() & theirs.keys())
    if common:
        ones, others = ([side[seed] for seed in common] for side in (ours, theirs))
        return tested(ones, others, by_example(ones, others, answers))
    if len(ours) == len(theirs) == 1:
        return tested([*ours.values()], [*theirs.values()])
    return Outcome(None, "not tested, no seed in common")


def tested(
    first: Sequence[Record], second: Sequence[Record], each: NDArray[np.float64] | None = None
) -> Outcome:
    """Compare two methods on a task.

    Args:
        first: The first method's records, at least one.
        second: The second method's records; if there are several, for the same seeds.
        each: The difference for each test example, as `by_example` returns it; None if
            predictions are missing.
    """
    if len(first) == 2:
        return Outcome(None, TWO_SEEDS)
    if len(first) > 2:
        pairs = zip(first, second, strict=True)
        differences = [(a.test_accuracy or 0.0) - (b.test_accuracy or 0.0) for a, b in pairs]
        p, mean = paired_t(differences), statistics.mean(differences)
        flat, half = all_equal(differences), half_width(differences, each)
        test = f"{'signs' if flat else 'paired t'} over {len(first)} seeds, {p_in_words(p)}"
        if each is not None:
            over_examples = p_of_mean(float(each.mean()), standard_error(each))
            test += (
                f"; z over test examples, {p_in_words(over_examples)}; together"
                f" {100 * (mean - half):+.1f} to {100 * (mean + half):+.1f} points"
            )
        differ = abs(mean) > half and not (flat and p >= LEVEL)
        return Outcome(_sign(mean) if differ else 0, test)
    if each is not None:
        one, other = discordant(each)
        p = mcnemar(one, other)
        test = f"McNemar, seed {first[0].seed}, {p_in_words(p)}"
        return Outcome(_sign(one - other) if p < LEVEL else 0, test)
    low, high = difference_interval(correct(first[0]), correct(second[0]))
    interval = f"difference {100 * low:.1f} to {100 * high:.1f} points"
    return Outcome(0 if low <= 0 <= high else _sign(low), interval)


def by_example(
    first: Sequence[Record], second: Sequence[Record], answers: Answers
) -> NDArray[np.float64] | None:
    """Return by how much more often the first method answers each test example correctly.

    Args:
        first: The first method's records, at least one.
        second: The second method's, for the same seeds.
        answers: Returns the test predictions of a record, or None if there are none.

    Returns:
        `(num_examples,)`, from -1 to 1: means over the seeds. None if predictions are missing or
        not of the same examples.
    """
    found = [answers(record) for record in (*first, *second)]
    there = [each for each in found if each is not None]
    if len(there) < len(found):
        return None
    if not all(np.array_equal(each.labels, there[0].labels) for each in there):
        return None
    right = np.stack([each.right for each in there]).astype(np.float64)
    difference: NDArray[np.float64] = right[: len(first)].mean(0) - right[len(first) :].mean(0)
    return difference


def discordant(each: NDArray[np.float64]) -> tuple[int, int]:
    """Return how many test examples only the first of two records, and only the second, has right.

    Args:
        each: What `by_example` returns for one record of each method.
    """
    return int((each > 0).sum()), int((each < 0).sum())


def standard_error(each: NDArray[np.float64]) -> float:
    """Return the standard error of the mean of what `by_example` returns."""
    return float(each.std(ddof=1)) / math.sqrt(len(each)) if len(each) > 1 else math.inf


def half_width(differences: Sequence[float], each: NDArray[np.float64] | None) -> float:
    """Return half of the `1 - LEVEL` interval of a difference between two methods.

    The errors of the mean over the seeds and of the test set add up in quadrature.

    Args:
        differences: Differences of the accuracies for each seed, as shares.
        each: The difference for each test example; see `tested`.
    """
    of_test = 0.0 if each is None else NORMAL * standard_error(each)
    if (count := len(differences)) < 2:
        return of_test
    of_seeds = student(count - 1) * statistics.stdev(differences) / math.sqrt(count)
    return math.hypot(of_seeds, of_test)


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


def correct(record: Record) -> tuple[int, int]:
    """Return how many test examples a record has right, and how many there are."""
    return record.test_correct or 0, record.test_total or 1
