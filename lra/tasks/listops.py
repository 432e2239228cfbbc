"""ListOps: evaluate nested MIN, MAX, MED and SM over digits (arXiv 2011.04006, section 2.2).

The published files where `data_dir` holds them, else our own generator with the same setting.
Brackets are kept, parentheses are not: they carry no information. Ids are fixed: 0 padding,
1 to 10 the digits, 11 to 14 MIN, MAX, MED and SM, 15 the closing bracket.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar

from lra.bar import progress_bar
from lra.tasks import DataError, Source, Writer, file_signature
from lra.tasks.archive import places
from lra.tasks.listops_generator import MAX_ARGUMENTS, SYMBOLS, Grammar, generate

FILES = {"train": "basic_train.tsv", "validation": "basic_val.tsv", "test": "basic_test.tsv"}
# The published archive holds the folder twice; people also copy just the three files.
FOLDERS = (
    "listops",
    "listops-1000",
    "listops/listops-1000",
    *places("listops-1000"),
)
HEADER = "Source\tTarget"
# Symbols from which several processes generate.
PARALLEL_FROM = 50_000_000


@dataclass(frozen=True, kw_only=True)
class ListOps:
    """Options of the task; the defaults are Long Range Arena's setting.

    Args:
        num_train: Training expressions.
        num_validation: Validation expressions.
        num_test: Test expressions.
        min_length: Expressions are strictly longer, in symbols.
        max_length: Expressions are strictly shorter.
        max_depth: Depth of the deepest digits.
        max_arguments: Most arguments of an operator.
        data_seed: Seed of the generator.
    """

    version: ClassVar[int] = 1
    id_shift: ClassVar[int] = 0

    num_train: int = 96_000
    num_validation: int = 2_000
    num_test: int = 2_000
    min_length: int = 500
    max_length: int = 2_000
    max_depth: int = 10
    max_arguments: int = MAX_ARGUMENTS
    data_seed: int = 0

    def __post_init__(self) -> None:
        for key in ("num_train", "num_validation", "num_test"):
            if (count := getattr(self, key)) < 1:
                raise ValueError(f"task.options.{key}={count}: must be at least 1")
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

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples of each split."""
        return {
            "train": self.num_train,
            "validation": self.num_validation,
            "test": self.num_test,
        }

    def locate(self, data_dir: Path | None) -> Source:
        """Find the published files under `data_dir`; without them the data are generated."""
        if data_dir is not None and self == ListOps():
            for folder in FOLDERS:
                files = tuple(data_dir / folder / name for name in FILES.values())
                if all(file.is_file() for file in files):
                    found, place = file_signature(files), f"in {data_dir / folder}"
                    return Source("published", "published files", files, found, place)
        looked = f"as no {FILES['train']} lies in {', '.join(FOLDERS)} below {data_dir}"
        place = looked if data_dir is not None and self == ListOps() else ""
        return Source("generated", f"generated with seed {self.data_seed}", place=place)

    def write(self, source: Source, splits: Mapping[str, Writer]) -> None:
        """Write every split; see `lra.tasks.Task`."""
        if source.kind == "published":
            for (name, size), file in zip(self.sizes.items(), source.files, strict=True):
                self._read(file, size, splits[name])
            return
        grammar = Grammar(
            min_length=self.min_length,
            max_length=self.max_length,
            max_depth=self.max_depth,
            max_arguments=self.max_arguments,
        )
        total = sum(self.sizes.values())
        # Starting processes takes longer than a small set does.
        workers = (os.cpu_count() or 1) if total * self.max_length > PARALLEL_FROM else 1
        examples = generate(total, grammar, self.data_seed, workers)
        bar = iter(progress_bar(examples, "ListOps", total, unit="expressions"))
        for name, size in self.sizes.items():
            for symbols, label in islice(bar, size):
                splits[name].add(label, symbols)
        # Let the bar reach its end and close.
        next(bar, None)

    @staticmethod
    def _read(file: Path, size: int, split: Writer) -> None:
        count = 0
        for symbols, label in progress_bar(read_tsv(file), file.name, size):
            split.add(label, symbols)
            count += 1
        if count != size:
            raise DataError(f"{file}: holds {count} expressions, the published file has {size}")


def read_tsv(file: Path) -> Iterator[tuple[bytes, int]]:
    """Yield `(symbols, value)` for every row of a published file.

    Raises:
        DataError: A row is not what it should be; the message names file and line.
    """
    with open(file, encoding="ascii", errors="replace", newline="\n") as rows:
        if (header := next(rows, "").rstrip("\r\n")) != HEADER:
            raise DataError(f"{file}, line 1: {header!r} should be {HEADER!r}")
        for number, row in enumerate(rows, start=2):
            columns = row.rstrip("\r\n").split("\t")
            if len(columns) != 2:
                raise DataError(f"{file}, line {number}: {len(columns)} columns, should be 2")
            expression, target = columns
            words = expression.replace("(", " ").replace(")", " ").split()
            if not words:
                raise DataError(f"{file}, line {number}: the expression is empty")
            try:
                symbols = bytes(SYMBOLS[word] for word in words)
            except KeyError as error:
                raise DataError(
                    f"{file}, line {number}: {error.args[0]!r} is no ListOps symbol"
                ) from None
            if len(target) != 1 or not target.isdecimal():
                raise DataError(f"{file}, line {number}: label {target!r} should be a digit 0 to 9")
            yield symbols, int(target)
