"""Group records by task and method: the basis of the tables and pictures."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lra.record import Method, Record
from lra.variant import UNKNOWN
from lra.words import printable

TASK_ORDER = ("listops", "text", "retrieval", "image", "pathfinder", "pathx", "recall")
BASELINE = "softmax"
# Marks an entry that departs from its recipe.
STAR = "[*]"
# An entry is above chance when it beats the majority rate by more than this many standard errors.
CHANCE_ERRORS = 2
# A speed is unsteady if its interquartile range exceeds this share of it.
MAX_SPREAD = 0.2


@dataclass(frozen=True)
class Entry:
    """The records of one task, backend and variant, over seeds.

    Args:
        records: At least one, sorted by seed.
        missing: Number of requested seeds that have no record.
    """

    records: tuple[Record, ...]
    missing: int = 0

    @property
    def finished(self) -> list[Record]:
        """The records that have a result."""
        return [record for record in self.records if record.status == "ok"]

    @property
    def seeds(self) -> set[int]:
        """The seeds that have a result."""
        return {record.seed for record in self.finished}

    @property
    def accuracies(self) -> list[float]:
        """Test accuracies over seeds, in percent."""
        accuracies = [record.test_accuracy for record in self.finished]
        return [100 * accuracy for accuracy in accuracies if accuracy is not None]

    @property
    def mean(self) -> float | None:
        """Mean test accuracy in percent."""
        return statistics.mean(self.accuracies) if self.accuracies else None

    def above(self, other: "Entry") -> float:
        """Return the mean difference from another entry in percentage points.

        It is taken over the seeds of both, or if they have none in common, over all of each.
        """
        ours, theirs = (
            {each.seed: 100 * (each.test_accuracy or 0.0) for each in entry.finished}
            for entry in (self, other)
        )
        if common := ours.keys() & theirs.keys():
            return statistics.mean(ours[seed] - theirs[seed] for seed in sorted(common))
        return statistics.mean(ours.values()) - statistics.mean(theirs.values())

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds in percent; None for a single seed."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None

    @property
    def majority_rate(self) -> float:
        """Share of the most frequent label in the test set, in percent."""
        return 100 * (self.finished[0].test_majority_rate or 0)

    @property
    def at_chance(self) -> bool:
        """Whether the accuracy is indistinguishable from guessing the most frequent label."""
        return not beats_chance(self.finished)

    @property
    def num_above_chance(self) -> int:
        """Number of seeds that beat chance; some seeds may learn Pathfinder and others not."""
        return sum(beats_chance([record]) for record in self.finished)

    @property
    def above_chance(self) -> float | None:
        """Mean of `(accuracy - chance) / (1 - chance)` in percent: 0 is guessing, 100 perfect."""
        if self.mean is None or self.majority_rate == 100:
            return None
        return 100 * (self.mean - self.majority_rate) / (100 - self.majority_rate)

    @property
    def departures(self) -> list[str]:
        """Departures from the recipe as text, for records whose values differ from it."""
        return sorted({record.departures for record in self.records} - {"", UNKNOWN})

    @property
    def versions(self) -> list[str]:
        """Versions of a user's own backend behind the results; one unless its file changed."""
        return sorted({record.attention_source for record in self.finished})

    def median(self, key: str) -> float:
        """Return the median over seeds of a number in the record, such as `steps_per_second`."""
        numbers: list[float] = [getattr(record, key) for record in self.finished]
        return statistics.median(numbers)

    @property
    def speed_spread(self) -> float | None:
        """The largest ratio, over seeds, of a speed's interquartile range to its median."""
        spreads = [record.speed_spread for record in self.finished]
        return max((spread for spread in spreads if spread is not None), default=None)

    @property
    def unsteady(self) -> bool:
        """Whether the machine was disturbed, or seeds were trained in different conditions."""
        conditions = {_conditions(record) for record in self.finished}
        return (self.speed_spread or 0.0) > MAX_SPREAD or len(conditions) > 1

    @property
    def peak_memory(self) -> int:
        """The largest peak memory over seeds, in bytes."""
        return max(record.peak_memory_bytes or 0 for record in self.finished)

    @property
    def accuracy_text(self) -> str:
        """Mean, deviation and number of seeds as text."""
        if self.mean is None:
            return "failed"
        deviation = "" if self.deviation is None else f" ± {self.deviation:.1f}"
        failed, above = len(self.records) - len(self.finished), self.num_above_chance
        learnt = f", {above} above chance" if 0 < above < len(self.finished) else ""
        return (
            f"{self.mean:.1f}{deviation} (n={len(self.finished)}{learnt})"
            + (" at chance" if self.at_chance else "")
            + (f", {failed} failed" if failed else "")
            + (f", {self.missing} missing" if self.missing else "")
        )


def beats_chance(records: Sequence[Record]) -> bool:
    """Return whether the mean accuracy exceeds the majority rate by enough standard errors.

    The error is that of one test set, as all seeds answer the same examples.

    Args:
        records: Finished records of the same data, at least one.
    """
    correct = sum(record.test_correct or 0 for record in records)
    total = sum(record.test_total or 0 for record in records)
    rate = records[0].test_majority_rate or 0.0
    error: float = (rate * (1 - rate) / (records[0].test_total or 1)) ** 0.5
    return correct / total > rate + CHANCE_ERRORS * error


@dataclass(frozen=True)
class Grid:
    """All entries of a scale and protocol.

    Args:
        tasks: Columns, in the order of the paper: one per task, or one per data set if a task's
            records come from several, since accuracies are comparable only on the same data.
        methods: Rows, the baseline first.
        entries: The entries that have records, by task and method.
    """

    tasks: tuple[str, ...]
    methods: tuple[Method, ...]
    entries: dict[tuple[str, Method], Entry]

    def entry(self, task: str, method: Method) -> Entry | None:
        """Return the entry of a task and method; None if nothing was trained."""
        return self.entries.get((task, method))

    def of(self, task: str) -> dict[Method, Entry]:
        """Return the entries of a task that have a result, in row order."""
        found = {method: self.entry(task, method) for method in self.methods}
        return {method: entry for method, entry in found.items() if entry and entry.finished}

    def majority_rate(self, task: str) -> float | None:
        """Return the share of a task's most frequent label, in percent; None without a result."""
        return next((entry.majority_rate for entry in self.of(task).values()), None)

    @property
    def split(self) -> list[str]:
        """Return the tasks that have one column for each of several data sets."""
        return sorted({task_of(column) for column in self.tasks if task_of(column) != column})

    def absence(self, column: str, method: Method) -> str:
        """Return, as text, why a column has no entry for a method."""
        others = [c for c in self.tasks if task_of(c) == task_of(column) and self.entry(c, method)]
        return "other data" if others else "missing"

    def label(self, task: str) -> str:
        """Return a task's name, with `(stand-in)` if its data are this project's stand-in."""
        stand_in = any(r.task == task and r.data_source == "stand-in" for r in self.records)
        return f"{task} (stand-in)" if stand_in else task

    def name(self, method: Method, task: str = "") -> str:
        """Return a method's name, with a star if any value departs from its recipe.

        Args:
            method: The method.
            task: Consider this task alone; if empty, any task.
        """
        tasks = [task] if task else self.tasks
        entries = [self.entry(each, method) for each in tasks]
        return f"{method} {STAR}" if any(e and e.departures for e in entries) else str(method)

    def departure_lines(self) -> list[str]:
        """Return what the stars mean, one line for each entry that departs from its recipe."""
        return [
            printable(f"{STAR} {task}/{method} departs from its recipe: {text}.")
            for (task, method), entry in sorted(self.entries.items())
            for text in entry.departures
        ]

    def baseline(self, task: str) -> Method | None:
        """Return the baseline of a task: softmax, or its only variant."""
        there = [method for method in self.of(task) if method.attention == BASELINE]
        plain = Method(BASELINE)
        return plain if plain in there else there[0] if len(there) == 1 else None

    def speed_ratio(self, task: str, method: Method) -> float | None:
        """Return the speed over the baseline's; None unless both were measured alike.

        If their seeds come from several commits, it is the median of the ratios at each that both
        have.
        """
        entry, base = self.entry(task, method), self.baseline(task)
        baseline = self.entry(task, base) if base else None
        if entry is None or baseline is None:
            return None
        ours, theirs = _speeds(entry), _speeds(baseline)
        ratios = [ours[each] / theirs[each] for each in ours if each in theirs]
        return statistics.median(ratios) if ratios else None

    @property
    def records(self) -> list[Record]:
        """Every record."""
        return [record for entry in self.entries.values() for record in entry.records]


def measured_alike(entries: Iterable[Entry]) -> bool:
    """Return whether speeds are comparable: same machine, device, precision, torch and commit."""
    return len({_measured_on(record) for entry in entries for record in entry.finished}) == 1


def build_grid(
    records: Iterable[Record],
    tasks: Sequence[str] = (),
    attentions: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> Grid:
    """Group records into entries.

    Args:
        records: Records of one scale and protocol.
        tasks: Tasks that must have a column, whether trained or not.
        attentions: Backends that must have a row.
        seeds: Seeds that every entry should have.
    """
    records = list(records)
    kinds = {(record.scale, record.protocol) for record in records}
    assert len(kinds) <= 1, (
        f"records of several scales or protocols, which must never mix: {sorted(kinds)}"
    )
    data: dict[str, set[tuple[str, str]]] = {}
    for record in records:
        data.setdefault(record.task, set()).add(_data(record))
    groups: dict[tuple[str, Method], list[Record]] = {}
    for record in records:
        column = record.task if len(data[record.task]) == 1 else _column(record)
        groups.setdefault((column, record.method), []).append(record)
    entries = {
        key: Entry(
            tuple(sorted(group, key=lambda record: record.seed)),
            len(set(seeds) - {record.seed for record in group}),
        )
        for key, group in groups.items()
    }
    known = {*(task for task in tasks if task not in data), *(column for column, _ in entries)}
    rank = {task: place for place, task in enumerate(TASK_ORDER)}
    columns = sorted(known, key=lambda column: (rank.get(task_of(column), len(rank)), column))
    methods = {method for _, method in entries}
    # A variant counts as its backend.
    trained = {method.attention for method in methods}
    methods |= {Method(name) for name in attentions if name not in trained}
    order = sorted(methods, key=lambda method: (method.attention != BASELINE, method))
    return Grid(tuple(columns), tuple(order), entries)


def _data(record: Record) -> tuple[str, str]:
    return record.data_source, record.data_fingerprint


def _column(record: Record) -> str:
    return f"{record.task} [{record.data_source} {record.data_fingerprint[:8]}]"


def task_of(column: str) -> str:
    """Return the task of a column."""
    return column.partition(" [")[0]


def _speeds(entry: Entry) -> dict[tuple[object, ...], float]:
    """Return the median of an entry's updates per second, by where and with what they were made."""
    found: dict[tuple[object, ...], list[float]] = {}
    for record in entry.finished:
        found.setdefault(_measured_on(record), []).append(record.steps_per_second or 0.0)
    return {each: speed for each, all_ in found.items() if (speed := statistics.median(all_))}


def _measured_on(record: Record) -> tuple[object, ...]:
    """Return what must be equal for two speeds to be compared."""
    return (*_conditions(record), record.commit, record.dirty)


def _conditions(record: Record) -> tuple[object, ...]:
    """Return where a record was made and how, apart from its code."""
    return (
        record.machine,
        record.earlier_machines,
        record.device,
        record.dtype,
        record.compiled,
        record.threads,
        record.processes,
        record.torch,
    )
