"""Compare two methods over their seeds: the difference, its interval, and what it shows.

    lra compare attention=softmax,mra task=listops,text seed=0,1,2,3,4 scale=mini
    lra compare attention=fourier variant=default,norm=ortho scale=mini

It works from records alone. Cells of one task and seed, trained on the same data, form a pair. A
single pair has the interval of a difference on one test set, computed from the examples that only
one of the two methods classifies correctly if predictions are stored; otherwise, it is Newcombe's
interval for two shares. Several pairs have Student's interval of the differences; if predictions
are stored, the error of the test set, which all seeds share, is added in quadrature. Which method
is better is decided by the same tests as in a report. Two methods are compared: the first two that
the words name, or the first two that have records.
"""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from lra.compose import command, groups
from lra.config import ConfigError
from lra.markdown import markdown
from lra.record import Method, Record, records_of
from lra.report.grid import beats_chance, build_grid
from lra.report.notes import changed
from lra.report.selection import Selection, selections, with_departures
from lra.report.significance import (
    all_equal,
    difference_interval,
    mcnemar,
    p_in_words,
)
from lra.report.standing import (
    Answers,
    Outcome,
    by_example,
    correct,
    discordant,
    half_width,
    prediction_reader,
    tested,
)
from lra.terminal import command_parser, refused, run
from lra.variant import DEFAULT
from lra.words import printable, shown


@dataclass(frozen=True)
class Comparison:
    """Accuracies of two methods on a task, seed by seed.

    Args:
        task: Task.
        first: The first method's records, by seed.
        second: The second method's records, for the same seeds.
        each: By how much more often the first method classifies each test example correctly, as
            `by_example` returns it; None if predictions are missing.
        left_out: Seeds that only one of the two methods has, as text.
    """

    task: str
    first: tuple[Record, ...]
    second: tuple[Record, ...]
    each: NDArray[np.float64] | None = None
    left_out: str = ""

    @property
    def differences(self) -> list[float]:
        """The first method's accuracy minus the second's for each seed, in percent."""
        pairs = zip(self.first, self.second, strict=True)
        return [100 * ((a.test_accuracy or 0) - (b.test_accuracy or 0)) for a, b in pairs]

    @property
    def mean(self) -> float:
        """The mean of the differences, in percent."""
        return statistics.mean(self.differences)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference, in percent."""
        count = len(self.differences)
        if count == 1 and self.each is None:
            low, high = difference_interval(correct(self.first[0]), correct(self.second[0]))
            return 100 * low, 100 * high
        # For one seed: a difference of shares of the same examples (Agresti, equation 11.1).
        half = 100 * half_width([each / 100 for each in self.differences], self.each)
        return self.mean - half, self.mean + half

    @property
    def outcome(self) -> Outcome:
        """The test that decides: with stored predictions, an interval is an approximation."""
        return tested(self.first, self.second, self.each)

    @property
    def words(self) -> str:
        """The result of the comparison in words."""
        one, other = self.first[0].method, self.second[0].method
        if not beats_chance(self.first) and not beats_chance(self.second):
            return f"{one} and {other} are both at chance"
        outcome = self.outcome
        if outcome.better is None:
            return f"two seeds do not decide between {one} and {other}"
        if not outcome.better:
            return f"no difference is shown between {one} and {other}"
        better, worse = (one, other) if outcome.better > 0 else (other, one)
        return f"{better} is better than {worse}"


def comparisons(
    records: Iterable[Record],
    one: Method,
    other: Method,
    answers: Answers = lambda record: None,
) -> Iterator[Comparison]:
    """Yield the comparison of two methods on every task where they share seeds and data.

    Args:
        records: Records of one scale and protocol.
        one: The first method.
        other: The second method.
        answers: Returns the test predictions of a record, or None if there are none.
    """
    results: dict[tuple[str, int, str], dict[Method, Record]] = {}
    for record in records:
        if record.status == "ok" and record.method in (one, other):
            key = (record.task, record.seed, record.data_fingerprint)
            results.setdefault(key, {})[record.method] = record
    pairs = {key: each for key, each in sorted(results.items()) if len(each) == 2}
    kinds = list(dict.fromkeys((task, data) for task, _, data in pairs))
    for task, data in kinds:
        both = [each for key, each in pairs.items() if (key[0], key[2]) == (task, data)]
        first, second = (tuple(each[method] for each in both) for method in (one, other))
        left = [
            f"{method} seed {seed}"
            for (name, seed, kind), there in sorted(results.items())
            for method in there
            if (name, kind) == (task, data) and len(there) == 1
        ]
        source = first[0].data_source
        label = f"{task} (stand-in)" if source == "stand-in" else task
        if sum(each == task for each, _ in kinds) > 1:
            # Seeds on different data have different examples, so they are never averaged.
            label = f"{task} [{source} {data[:8]}]"
        each = by_example(first, second, answers)
        yield Comparison(label, first, second, each, ", ".join(left))


def methods(records: Sequence[Record], asked: Selection) -> tuple[Method, Method]:
    """Return the two methods that words select: the first two, in the order of the words.

    Raises:
        ConfigError: There are fewer than two.
    """
    there = list(dict.fromkeys(record.method for record in records))
    order = list(asked.attentions)
    variants = asked.values.get("variant", [])

    def place(method: Method) -> tuple[int, int, bool]:
        name, variant = method
        known = order.index(name) if name in order else len(order)
        asked_for = variants.index(variant) if variant in variants else len(variants)
        return known, asked_for, variant != DEFAULT

    # For one backend, its variants are compared; for several, two different backends.
    ranked = sorted(there, key=place)
    for one, other in combinations(ranked, 2):
        if len(order) < 2 or one.attention != other.attention:
            return one, other
    names = shown(", ".join(map(str, there))) or "none"
    raise ConfigError(f"two methods with results are needed; these words find {names}")


def page(
    records: Sequence[Record],
    one: Method,
    other: Method,
    answers: Answers = lambda record: None,
) -> str:
    """Return the table of two methods, followed by its meaning in words."""
    found = list(comparisons(records, one, other, answers))
    grid = build_grid(record for each in found for record in (*each.first, *each.second))
    names = [grid.name(one), grid.name(other)]
    table = [["task", "seeds", *names, "difference", "95 % interval"]]
    for each in found:
        low, high = each.interval
        numbers = [
            f"{100 * statistics.mean(record.test_accuracy or 0 for record in side):.1f}"
            for side in (each.first, each.second)
        ]
        interval = f"{low:+.1f} to {high:+.1f}"
        seeds = ",".join(str(record.seed) for record in each.first)
        table.append([each.task, seeds, *numbers, f"{each.mean:+.1f}", interval])
    lines = [f"{each.task}: {each.words}." for each in found]
    for each in found:
        if len(each.first) == 1 and each.each is not None:
            a, b = discordant(each.each)
            lines.append(
                f"{each.task}: {a} test examples are classified correctly only by {one},"
                f" {b} only by {other};"
                f" McNemar's exact {p_in_words(mcnemar(a, b))}."
            )
        if len(each.first) > 2:
            lines.append(f"{each.task}: {each.outcome.test}.")
        if each.left_out:
            lines.append(
                f"{each.task}: left out, as the other method has none on these data:"
                f" {each.left_out}."
            )
    if any(len(each.first) == 1 for each in found):
        lines.append(
            "For a single seed, the interval reflects only the size of the test set, not the"
            " variation between seeds."
        )
    flat = [each for each in found if len(each.first) > 2 and all_equal(each.differences)]
    if any(each.mean for each in flat):
        lines.append(
            "If all seeds differ by the same amount, Student's interval has no width, and the"
            " signs of the differences have to agree."
        )
    if any(len(each.first) == 2 for each in found):
        lines.append("Two seeds are too few for a useful test: they leave one degree of freedom.")
    if not found:
        return printable(f"{one} and {other} share no task with equal seeds and data.")
    lines += [*changed(grid), *grid.departure_lines()]
    return "\n".join([markdown(table), "", *map(printable, lines)])


def main() -> None:
    """Print the comparison that the command line asks for."""
    parser = command_parser("compare", __doc__)
    parser.add_argument("words", nargs="*", help="key=value, as for lra train")
    args = parser.parse_intermixed_args()
    with refused(ConfigError):
        for asked in selections(command(args.words), groups(args.words)):
            folder = asked.runs_dir / asked.scale / asked.protocol
            there = records_of(asked.runs_dir, asked.scale, asked.protocol)
            records = [record for record in map(with_departures, there) if asked.has(record)]
            records = [record for record in records if record.status == "ok"]
            print(f"Test accuracy in percent, scale {asked.scale}, protocol {asked.protocol}:\n")
            print(page(records, *methods(records, asked), prediction_reader(folder)))


if __name__ == "__main__":
    run(main)
