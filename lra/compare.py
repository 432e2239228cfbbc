"""Compare two methods over their seeds: the difference, its interval, and what it shows.

    lra compare attention=softmax,mra task=listops,text seed=0,1,2,3,4 scale=mini
    lra compare attention=fourier variant=default,norm=ortho scale=mini

It works from records alone. Cells of one task and seed, trained on the same data, form a pair; the
interval is Student's interval of the differences. A single pair has no spread: its interval is that
of a difference on one test set, computed from the examples that only one of the two methods
classifies correctly if predictions are stored; otherwise it is Newcombe's interval for two shares.
Which method is better is decided by the same tests as in a report. Two methods are compared: the
first two that the words name, or the first two that have records.
"""

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from lra.compose import command, groups
from lra.config import ConfigError
from lra.markdown import markdown
from lra.record import Method, Record, records_of
from lra.report.grid import beats_chance, build_grid
from lra.report.notes import changed
from lra.report.selection import Selection, selections, with_departures
from lra.report.significance import (
    NORMAL,
    all_equal,
    difference_interval,
    mcnemar,
    p_in_words,
    student,
)
from lra.report.standing import Answers, correct, discordant, prediction_reader, tested
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
        alone: Number of test examples that only the first method classifies correctly, and that
            only the second does, if there is one seed and both predictions are stored.
    """

    task: str
    first: tuple[Record, ...]
    second: tuple[Record, ...]
    alone: tuple[int, int] | None = None

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
        if count == 1 and self.alone is None:
            low, high = difference_interval(correct(self.first[0]), correct(self.second[0]))
            return 100 * low, 100 * high
        if self.alone is not None:
            # For a difference of shares of the same examples (Agresti, equation 11.1).
            one, other = self.alone
            total = self.first[0].test_total or 1
            half = 100 * NORMAL * math.sqrt(one + other - (one - other) ** 2 / total) / total
        else:
            half = student(count - 1) * statistics.stdev(self.differences) / math.sqrt(count)
        return self.mean - half, self.mean + half

    @property
    def words(self) -> str:
        """The result of the comparison in words."""
        one, other = self.first[0].method, self.second[0].method
        if not beats_chance(self.first) and not beats_chance(self.second):
            return f"{one} and {other} are both at chance"
        # The test decides: with stored predictions, the interval is an approximation.
        outcome = tested(self.first, self.second, self.alone)
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
        alone = discordant(first[0], second[0], answers) if len(both) == 1 else None
        source = first[0].data_source
        label = f"{task} (stand-in)" if source == "stand-in" else task
        if sum(each == task for each, _ in kinds) > 1:
            # Seeds on different data have different examples, so they are never averaged.
            label = f"{task} [{source} {data[:8]}]"
        yield Comparison(label, first, second, alone)


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
        table.append([each.task, f"{len(each.first)}", *numbers, f"{each.mean:+.1f}", interval])
    lines = [f"{each.task}: {each.words}." for each in found]
    for each in found:
        if each.alone is not None:
            a, b = each.alone
            lines.append(
                f"{each.task}: {a} test examples are classified correctly only by {one},"
                f" {b} only by {other};"
                f" McNemar's exact {p_in_words(mcnemar(a, b))}."
            )
    if any(len(each.first) == 1 for each in found):
        lines.append(
            "For a single seed, the interval reflects only the size of the test set, not the"
            " variation between seeds."
        )
    flat = [each for each in found if len(each.first) > 1 and all_equal(each.differences)]
    if any(each.mean for each in flat):
        lines.append(
            "If all seeds differ by the same amount, the interval has no width, and the signs of"
            " the differences decide."
        )
    if any(len(each.first) == 2 and each not in flat for each in found):
        lines.append(
            "Two seeds leave one degree of freedom, so the interval is wide; three say more."
        )
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
