"""Compare two methods over their seeds: the difference, its interval, and what that says.

    lra compare attention=softmax,mra task=listops,text seed=0,1,2,3,4 scale=mini
    lra compare attention=fourier variant=default,norm=ortho scale=mini

From records alone. Cells of one task and seed, trained on the same data, are a pair; the interval
is Student's of the differences. One pair has no spread: its interval is that of a difference on one
test set, by the examples that only one of both has right where predictions are stored, else as of
two shares. Two methods are compared, the first two that the words name or that there are.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from lra.compose import command, groups
from lra.config import ConfigError
from lra.markdown import markdown
from lra.record import Method, Record, records_of
from lra.report.selection import Selection, selections
from lra.report.significance import NORMAL, mcnemar, student
from lra.report.standing import Answers, discordant, stored
from lra.terminal import run
from lra.variant import DEFAULT
from lra.words import printable, shown


@dataclass(frozen=True)
class Comparison:
    """Accuracies of two methods on a task, seed by seed.

    Args:
        task: Task.
        first: The first method's records, by seed.
        second: The second's, of the same seeds.
        alone: Test examples that only the first has right, and only the second, where there is one
            seed and both predictions are stored.
    """

    task: str
    first: tuple[Record, ...]
    second: tuple[Record, ...]
    alone: tuple[int, int] | None = None

    @property
    def differences(self) -> list[float]:
        """The first's accuracy less the second's, in percent, a seed each."""
        pairs = zip(self.first, self.second, strict=True)
        return [100 * ((a.test_accuracy or 0) - (b.test_accuracy or 0)) for a, b in pairs]

    @property
    def mean(self) -> float:
        """Their mean, in percent."""
        return statistics.mean(self.differences)

    @property
    def half_width(self) -> float:
        """Half the width of the 95 % interval, in percent."""
        count = len(self.differences)
        if self.alone is not None:
            # Of a difference of shares of the same examples (Agresti, equation 11.1).
            one, other = self.alone
            spread = math.sqrt(one + other - (one - other) ** 2 / (self.first[0].test_total or 1))
            return 100 * NORMAL * spread / (self.first[0].test_total or 1)
        if count == 1:
            return 100 * NORMAL * math.sqrt(_variance(self.first[0]) + _variance(self.second[0]))
        return student(count - 1) * statistics.stdev(self.differences) / math.sqrt(count)

    @property
    def words(self) -> str:
        """What it says, in words."""
        one, other = self.first[0].method, self.second[0].method
        if abs(self.mean) <= self.half_width:
            return f"no difference is shown between {one} and {other}"
        better, worse = (one, other) if self.mean > 0 else (other, one)
        return f"{better} is better than {worse}"


def _variance(record: Record) -> float:
    """Return the variance of a share of so many test examples."""
    share, total = record.test_accuracy or 0, record.test_total or 1
    return share * (1 - share) / total


def comparisons(
    records: Iterable[Record],
    one: Method,
    other: Method,
    answers: Answers = lambda record: None,
) -> Iterator[Comparison]:
    """Yield the comparison of two methods on every task that both have equal seeds and data of.

    Args:
        records: Of one scale and protocol.
        one: The first method.
        other: The second.
        answers: Gives the test predictions of a record, None where there are none.
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
            # Seeds on other data are other examples: never averaged.
            label = f"{task} [{source} {data[:8]}]"
        yield Comparison(label, first, second, alone)


def methods(records: Sequence[Record], asked: Selection) -> tuple[Method, Method]:
    """Return the two methods that words ask for: the first two, in the order of the words.

    Raises:
        ConfigError: There are not two.
    """
    there = list(dict.fromkeys(record.method for record in records))
    order = list(asked.attentions)
    variants = [str(each) for each in asked.values.get("variant", [])]

    def place(method: Method) -> tuple[int, int, bool]:
        name, variant = method
        known = order.index(name) if name in order else len(order)
        asked_for = variants.index(variant) if variant in variants else len(variants)
        return known, asked_for, variant != DEFAULT

    # Of one backend its variants are compared; of several, one of each goes first.
    ranked = sorted(there, key=place)
    for one, other in combinations(ranked, 2):
        if len(order) < 2 or one.attention != other.attention:
            return one, other
    names = shown(", ".join(map(str, there))) or "none"
    raise ConfigError(f"two methods with results are needed; those words find {names}")


def page(
    records: Sequence[Record],
    one: Method,
    other: Method,
    answers: Answers = lambda record: None,
) -> str:
    """Return the table of two methods, and below it what it says in words."""
    found = list(comparisons(records, one, other, answers))
    table = [["task", "seeds", str(one), str(other), "difference", "95 % interval"]]
    for each in found:
        low, high = each.mean - each.half_width, each.mean + each.half_width
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
                f"{each.task}: only {one} is right on {a} test examples, only {other} on {b};"
                f" McNemar's exact p = {mcnemar(a, b):.2g}."
            )
    if any(len(each.first) == 1 for each in found):
        lines.append(
            "Of one seed the interval knows the test set's size alone, not what another seed gives."
        )
    if any(len(each.first) == 2 for each in found):
        lines.append(
            "Two seeds leave one degree of freedom, so the interval is wide; three tell more."
        )
    if not found:
        return printable(f"{one} and {other} have no task with equal seeds and data.")
    return "\n".join([markdown(table), "", *map(printable, lines)])


def main() -> None:
    """Print the comparison that the command line asks for."""
    parser = argparse.ArgumentParser(prog="lra compare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("words", nargs="*", help="key=value as of lra train")
    args = parser.parse_intermixed_args()
    try:
        for asked in selections(command(args.words), groups(args.words)):
            folder = asked.runs_dir / asked.scale / asked.protocol
            there = records_of(asked.runs_dir, asked.scale, asked.protocol)
            records = [record for record in there if asked.has(record)]
            records = [record for record in records if record.status == "ok"]
            print(f"Test accuracy in percent, scale {asked.scale}, protocol {asked.protocol}:\n")
            print(page(records, *methods(records, asked), stored(folder)))
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run(main)
