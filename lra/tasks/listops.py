"""ListOps: evaluate nested MIN, MAX, MED and SM over digits (arXiv 2011.04006, section 2.2).

The published files are used if `data_dir` holds them, else our own generator with the same
settings. Brackets are kept; parentheses are dropped, since they carry no information. Ids are
fixed: 0 is padding, 1 to 10 are the digits, 11 to 14 are MIN, MAX, MED and SM, and 15 is the
closing bracket.
"""

import codecs
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from lra.bar import progress_bar
from lra.cores import available_cores
from lra.tasks import (
    DataError,
    OnBadRow,
    Source,
    Writer,
    bad_row,
    check_counts,
    file_signature,
    raw,
)
from lra.tasks.archive import places
from lra.tasks.listops_generator import (
    MAX_ARGUMENTS,
    SYMBOLS,
    Grammar,
    check_feasible,
    generate,
    is_expression,
    value,
)

FILES = {"train": "basic_train.tsv", "validation": "basic_val.tsv", "test": "basic_test.tsv"}
# The published archive holds the folder twice; people also copy just the three files.
FOLDERS = (
    "listops",
    "listops-1000",
    "listops/listops-1000",
    *places("listops-1000"),
    ".",
)
HEADER = "Source\tTarget"
# Number of symbols from which several processes generate.
PARALLEL_FROM = 50_000_000


@dataclass(frozen=True, kw_only=True)
class ListOps:
    """Options of the task; the defaults are Long Range Arena's settings.

    Args:
        num_train: Training expressions.
        num_validation: Validation expressions.
        num_test: Test expressions.
        min_length: Expressions are strictly longer, in symbols.
        max_length: Expressions are strictly shorter.
        max_depth: Depth of the deepest digits.
        max_arguments: Maximum number of arguments of an operator.
        data_seed: Seed of the generator.
        source: `published` or `generated` demands that source; None uses published files if there
            are any.
        on_bad_row: `error`, or `skip` to leave bad rows of published files out and count them.
    """

    version: ClassVar[int] = 1
    id_shift: ClassVar[int] = 0
    younger: ClassVar[tuple[str, ...]] = ("source", "on_bad_row")

    num_train: int = 96_000
    num_validation: int = 2_000
    num_test: int = 2_000
    min_length: int = 500
    max_length: int = 2_000
    max_depth: int = 10
    max_arguments: int = MAX_ARGUMENTS
    data_seed: int = 0
    source: Literal["generated", "published"] | None = None
    on_bad_row: OnBadRow = "error"

    def __post_init__(self) -> None:
        check_counts(self, ("num_train", "num_validation", "num_test"))
        if not 0 <= self.min_length < self.max_length - 1:
            raise ValueError(
                f"task.options.min_length={self.min_length}: no length lies strictly between it"
                f" and task.options.max_length={self.max_length}"
            )
        if not 2 <= self.max_arguments <= MAX_ARGUMENTS:
            raise ValueError(
                f"task.options.max_arguments={self.max_arguments}: must be 2 to {MAX_ARGUMENTS}"
            )
        if self.max_depth < 2:
            raise ValueError(f"task.options.max_depth={self.max_depth}: must be at least 2")
        check_feasible(self.grammar, sum(self.sizes.values()))

    @property
    def grammar(self) -> Grammar:
        """The distribution of generated expressions."""
        return Grammar(
            min_length=self.min_length,
            max_length=self.max_length,
            max_depth=self.max_depth,
            max_arguments=self.max_arguments,
        )

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples of each split."""
        return {
            "train": self.num_train,
            "validation": self.num_validation,
            "test": self.num_test,
        }

    @property
    def has_published(self) -> bool:
        """Whether there are published expressions with these options."""
        return self == ListOps(source=self.source, on_bad_row=self.on_bad_row)

    @property
    def part(self) -> str | None:
        """The part of the published archive that holds the data with these options, if any."""
        return "listops" if self.has_published else None

    def locate(self, data_dir: Path | None) -> Source:
        """Find the published files under `data_dir`; without them, the data are generated."""
        place = ""
        raw.check_data_dir(data_dir)
        if self.source != "generated" and self.has_published:
            names = tuple(FILES.values())
            files = raw.find("ListOps", data_dir, FOLDERS, names) if data_dir else ()
            if files:
                found, place = file_signature(files), f"in {files[0].parent}"
                return Source("published", "published files", files, found, place)
            if data_dir is not None:
                place = f"because no {FILES['train']} is in {', '.join(FOLDERS)} below {data_dir}"
        if self.source == "published":
            reason = place.removeprefix("because ")
            if not self.has_published:
                reason = "the published data exist only with the default options"
            raise DataError(
                "task.options.source=published: "
                f"{reason or 'data_dir (or LRA_DATA_DIR) is not set'}"
            )
        return Source("generated", f"generated with seed {self.data_seed}", place=place)

    def write(self, source: Source, splits: Mapping[str, Writer]) -> Source | None:
        """Write every split; see `lra.tasks.Task`."""
        if source.kind == "published":
            # A sum, since every file must be read.
            wrong = sum(
                self._read(file, size, splits[name])
                for (name, size), file in zip(self.sizes.items(), source.files, strict=True)
            )
            if not wrong:
                return None
            other = f"files in the published form, {wrong:,} of whose labels are not the values"
            return replace(source, kind="other", description=other)
        total = sum(self.sizes.values())
        # Starting processes takes longer than generating a small set.
        workers = available_cores() if total * self.max_length > PARALLEL_FROM else 1
        examples = generate(total, self.grammar, self.data_seed, workers)
        bar = iter(progress_bar(examples, "ListOps", total, unit="expressions"))
        for name, size in self.sizes.items():
            for symbols, label in islice(bar, size):
                splits[name].add(label, symbols)
        # Let the progress bar reach its end and close.
        next(bar, None)

        return None

    def _read(self, file: Path, size: int, split: Writer) -> int:
        """Write the expressions of a file; return how many labels differ from their values."""
        count = wrong = 0
        for row in progress_bar(read_tsv(file), file.name, size):
            count += 1
            if row.fault:
                bad_row(f"{file}, line {row.line}: {row.fault}", split, self.on_bad_row)
                continue
            split.add(row.label, row.symbols)
            wrong += value(row.symbols) != row.label
        if count != size:
            raise DataError(f"{file}: holds {count} expressions, the published file has {size}")
        return wrong


class Row(NamedTuple):
    """A row of a published file: its symbols and value, or what is wrong with it."""

    line: int
    symbols: bytes = b""
    label: int = 0
    fault: str = ""


def read_tsv(file: Path) -> Iterator[Row]:
    """Yield the rows of a published file.

    Raises:
        DataError: The header is not what it should be.
    """
    with open(file, "rb") as stream:
        lines = raw.numbered(stream)
        _, header = next(lines, (1, b""))
        text = header.removeprefix(codecs.BOM_UTF8).decode("ascii", "replace")
        if text != HEADER:
            raise DataError(f"{file}, line 1: {text!r} should be {HEADER!r}")
        for number, line in lines:
            yield _row(number, line.decode("ascii", "replace"))


def _row(number: int, line: str) -> Row:
    columns = line.split("\t")
    if len(columns) != 2:
        return Row(number, fault=f"{len(columns)} columns, should be 2")
    expression, target = columns
    words = expression.replace("(", " ").replace(")", " ").split()
    if not words:
        return Row(number, fault="the expression is empty")
    if unknown := [word for word in words if word not in SYMBOLS]:
        return Row(number, fault=f"{unknown[0]!r} is not a ListOps symbol")
    if len(target) != 1 or not target.isdecimal():
        return Row(number, fault=f"label {target!r} should be a digit 0 to 9")
    symbols = bytes(SYMBOLS[word] for word in words)
    if not is_expression(symbols):
        return Row(number, fault="the brackets do not match")
    return Row(number, symbols, int(target))
