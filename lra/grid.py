"""Records grouped into cells: what the tables and the figure are made from."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lra.results import Record

TASK_ORDER = ("listops", "text", "retrieval", "image", "pathfinder", "pathx")
BASELINE = "softmax"
# A cell is above chance when it beats the majority rate by more than this many standard errors.
CHANCE_ERRORS = 2

Row = tuple[str, str]


@dataclass(frozen=True)
class Cell:
    """The records of one task, backend and variant, over seeds.

    Args:
        records: At least one, sorted by seed.
        missing: Seeds that were asked for and have no record.
    """

    records: tuple[Record, ...]
    missing: int = 0

    @property
    def finished(self) -> list[Record]:
        """The records that have a result."""
        return [record for record in self.records if record.status == "ok"]

    @property
    def accuracies(self) -> list[float]:
        """Test accuracies over seeds, in percent."""
        accuracies = [record.test_accuracy for record in self.finished]
        return [100 * accuracy for accuracy in accuracies if accuracy is not None]

    @property
    def mean(self) -> float | None:
        """Mean test accuracy in percent."""
        return statistics.mean(self.accuracies) if self.accuracies else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds in percent; None for a single one."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None

    @property
    def majority_rate(self) -> float:
        """Share of the test set's most frequent label, in percent."""
        return 100 * (self.finished[0].test_majority_rate or 0)

    @property
    def at_chance(self) -> bool:
        """Whether the accuracy cannot be told from guessing the most frequent label."""
        correct = sum(record.test_correct or 0 for record in self.finished)
        total = sum(record.test_total or 0 for record in self.finished)
        rate = self.majority_rate / 100
        error: float = (rate * (1 - rate) / total) ** 0.5
        return correct / total <= rate + CHANCE_ERRORS * error

    @property
    def accuracy_text(self) -> str:
        """What stands in the accuracy table."""
        if self.mean is None:
            return "failed"
        deviation = "" if self.deviation is None else f" ± {self.deviation:.1f}"
        failed = len(self.records) - len(self.finished)
        mixed = len({record.data_fingerprint for record in self.finished}) > 1
        return (
            f"{self.mean:.1f}{deviation} (n={len(self.finished)})"
            + (" at chance" if self.at_chance else "")
            + (f", {failed} failed" if failed else "")
            + (f", {self.missing} missing" if self.missing else "")
            + (", of different data" if mixed else "")
        )


@dataclass(frozen=True)
class Grid:
    """All cells of a scale and protocol.

    Args:
        tasks: Columns, in the order of the paper.
        rows: Backends with their variants, the baseline first.
        cells: Those that have records.
    """

    tasks: tuple[str, ...]
    rows: tuple[Row, ...]
    cells: dict[tuple[str, str, str], Cell]

    def cell(self, task: str, row: Row) -> Cell | None:
        """Return the cell of a task and row, None where nothing was trained."""
        return self.cells.get((task, *row))

    def label(self, task: str) -> str:
        """Return a task's name, with `(stand-in)` where its data are this project's."""
        stand_in = any(r.task == task and r.data_source == "stand-in" for r in self.records)
        return f"{task} (stand-in)" if stand_in else task

    @property
    def records(self) -> list[Record]:
        """Every record."""
        return [record for cell in self.cells.values() for record in cell.records]


def build_grid(
    records: Iterable[Record],
    tasks: Sequence[str] = (),
    attentions: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> Grid:
    """Group records into cells.

    Args:
        records: Of one scale and protocol.
        tasks: Tasks that must have a column, whether trained or not.
        attentions: Backends that must have a row.
        seeds: Seeds that every cell should have.
    """
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.task, record.attention, record.variant), []).append(record)
    cells = {
        key: Cell(
            tuple(sorted(group, key=lambda record: record.seed)),
            len(set(seeds) - {record.seed for record in group}),
        )
        for key, group in groups.items()
    }
    known = {*tasks, *(task for task, _, _ in cells)}
    columns = [task for task in TASK_ORDER if task in known]
    columns += sorted(known - set(columns))
    rows = {(name, "default") for name in attentions} | {key[1:] for key in cells}
    order = sorted(rows, key=lambda row: (row[0] != BASELINE, row))
    return Grid(tuple(columns), tuple(order), cells)


def _comparable(record: Record) -> tuple[object, ...]:
    return (
        record.machine,
        record.device,
        record.dtype,
        record.compiled,
        record.threads,
        record.torch,
        record.commit,
        record.dirty,
    )


def speed_ratio(cell: Cell, baseline: Cell | None) -> float | None:
    """Return speed over the baseline's, None unless both were measured alike."""
    if baseline is None or not baseline.finished:
        return None
    if len({_comparable(record) for record in cell.finished + baseline.finished}) != 1:
        return None
    return median_speed(cell, "steps_per_second") / median_speed(baseline, "steps_per_second")


def median_speed(cell: Cell, key: str) -> float:
    """Return the median over seeds of `steps_per_second` or `tokens_per_second`."""
    speeds: list[float] = [getattr(record, key) for record in cell.finished]
    return statistics.median(speeds)
