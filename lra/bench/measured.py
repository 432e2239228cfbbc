"""What a bench leaves: a JSON file a machine, with every run of the bench that was made on it.

Everything a table or picture shows is in it, each timing by itself, so that both are made again
without measuring, and without torch.
"""

import hashlib
import json
import os
import re
import socket
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

from filelock import FileLock

from lra.bench.growth import Growth, growth
from lra.folders import writing
from lra.record import RecordError
from lra.typecheck import describe, fits

KIND, SCHEMA = "lra bench", 1
Mode = Literal["training", "inference"]
MODES: tuple[Mode, Mode] = ("training", "inference")
# Numbers of a cell that may be asked for by name.
Quantity = Literal["seconds", "peak_memory_bytes", "flops"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A backend at a length, in training or inference.

    Args:
        attention: Its name, and what of its options was chosen.
        length: Tokens of a sequence.
        mode: An update on a batch, or a forward pass alone.
        seconds: Of one such step, every timing in the order it was made.
        calls: Steps that a timing is the mean of.
        peak_memory_bytes: What a step adds to the tensors that are there before.
        flops: Operations of a step, see `lra.flops`.
        parameters: Of the model.
        failed: Why there is no timing; empty where there is.
    """

    attention: str
    length: int
    mode: Mode
    seconds: list[float] = field(default_factory=list)
    calls: int = 1
    peak_memory_bytes: int = 0
    flops: int = 0
    parameters: int = 0
    failed: str = ""

    @property
    def median(self) -> float:
        """Median seconds of a step."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of the seconds of a step."""
        if len(self.seconds) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    @property
    def spread(self) -> float:
        """Interquartile range of the seconds over their median."""
        low, high = self.quartiles
        return (high - low) / self.median

    def value(self, quantity: Quantity) -> float:
        """Return a number of it by name; of seconds the median."""
        return self.median if quantity == "seconds" else float(getattr(self, quantity))


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One run of the bench: all of it was measured in turn within one process.

    Args:
        when: Day and time of its end, in UTC.
        device: `cpu`, `cuda` or `mps`.
        threads: CPU threads.
        dtype: Precision.
        compiled: Whether models ran through `torch.compile`.
        task: Whose recipe gives the model.
        protocol: Whose recipe it is.
        batch_size: Examples per step.
        attention_dropout: Probability of dropping an attention weight in training.
        total_seconds: What the whole run took.
        torch: Version of torch.
        python: Version of Python.
        commit: Of the suite; empty where it is unknown.
        dirty: Whether the code differed from it.
        cells: What was measured.
        sequences: Of an example: two where pairs are compared.
    """

    when: str
    device: str
    threads: int
    dtype: str
    compiled: bool
    task: str
    protocol: str
    batch_size: int
    attention_dropout: float
    total_seconds: float
    torch: str
    python: str
    commit: str
    dirty: bool
    cells: list[Cell]
    sequences: int = 1

    @property
    def attentions(self) -> list[str]:
        """The backends, in the order they were asked for."""
        return list(dict.fromkeys(cell.attention for cell in self.cells))

    @property
    def lengths(self) -> list[int]:
        """The lengths, ascending."""
        return sorted({cell.length for cell in self.cells})

    def cell(self, attention: str, length: int, mode: Mode) -> Cell | None:
        """Return what was measured of a backend at a length; None where that failed."""
        found = (
            cell
            for cell in self.cells
            if (cell.attention, cell.length, cell.mode) == (attention, length, mode)
        )
        cell = next(found, None)
        return None if cell is None or cell.failed else cell

    def of(self, attention: str, mode: Mode) -> list[Cell]:
        """Return what was measured of a backend, by length."""
        cells = (self.cell(attention, length, mode) for length in self.lengths)
        return [cell for cell in cells if cell is not None]

    def growth(self, attention: str, mode: Mode, quantity: Quantity) -> Growth | None:
        """Return how a quantity of a backend grows with the length."""
        cells = self.of(attention, mode)
        return growth([cell.length for cell in cells], [cell.value(quantity) for cell in cells])


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a bench ran.

    Args:
        name: Processor, or GPU.
        processors: Processors there are.
        id: Tells machines of one kind apart, and says nothing else of them.
    """

    name: str
    processors: int
    id: str

    @property
    def stem(self) -> str:
        """What its file is called, without suffix."""
        return f"{re.sub(r'[^a-z0-9]+', '-', self.name.lower()).strip('-')}-{self.id}"


def this_machine(name: str) -> Machine:
    """Return this machine.

    Args:
        name: Processor, or GPU.
    """
    host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]
    return Machine(name=name, processors=os.cpu_count() or 1, id=host)


@dataclass(frozen=True, kw_only=True)
class Document:
    """What a machine's file holds.

    Args:
        machine: The machine.
        runs: Runs of the bench, the newest last; at least one.
    """

    machine: Machine
    runs: list[Bench]


def read(file: Path) -> Document:
    """Read a machine's file and check every key.

    Raises:
        RecordError: It is damaged or foreign; the message names file and key.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{file}: not readable as JSON ({error})") from error
    if not is_one(values) or values.get("schema") != SCHEMA:
        raise RecordError(f"{file}: no records of a bench of schema {SCHEMA}")
    try:
        runs = [
            _checked(Bench, run | {"cells": [_checked(Cell, cell) for cell in run["cells"]]})
            for run in values["runs"]
        ]
        found = Document(machine=_checked(Machine, values["machine"]), runs=runs)
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{file}: {error}") from error
    if not runs:
        raise RecordError(f"{file}: runs are none, must be at least 1")
    return found


def is_one(values: Any) -> bool:
    """Tell whether what a JSON file holds is called the records of a bench."""
    return isinstance(values, dict) and values.get("kind") == KIND


def _checked(kind: Any, values: Mapping[str, Any]) -> Any:
    hints = get_type_hints(kind)
    defaults = {f.name for f in fields(kind) if not (f.default is f.default_factory is MISSING)}
    wrong = (values.keys() - hints.keys()) | (hints.keys() - values.keys() - defaults)
    if wrong:
        name = min(wrong)
        raise ValueError(f"key {name!r} is {'missing' if name in hints else 'unknown'}")
    for key, value in values.items():
        if not fits(value, hints[key]):
            raise ValueError(f"{key}={value!r} must be {describe(hints[key])}")
    made = kind(**values)
    if isinstance(made, Cell):
        _check_numbers(made)
    return made


def _check_numbers(cell: Cell) -> None:
    """Raise where a cell that has not failed lacks a number, or one cannot be."""
    if cell.failed:
        return
    where = f"{cell.attention} at {cell.length}, {cell.mode}"
    if not cell.seconds or not all(0 < each < float("inf") for each in cell.seconds):
        raise ValueError(f"{where}: seconds={cell.seconds} must be positive, at least one")
    for key in ("length", "peak_memory_bytes", "flops", "parameters"):
        if getattr(cell, key) < 1:
            raise ValueError(f"{where}: {key}={getattr(cell, key)} must be at least 1")


def write(file: Path, document: Document) -> None:
    """Write a machine's file, whole or not at all."""
    partial = file.with_name(f"{file.name}.partial")
    values = {"kind": KIND, "schema": SCHEMA, **asdict(document)}
    partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, file)


def add(folder: Path, machine: Machine, run: Bench) -> Path:
    """Add a run to the file of its machine, and return that.

    What is there of another machine, or is no such file, is left alone: a number makes the name
    another.

    Args:
        folder: Where machines have their files; it is made where it is not there.
        machine: The machine.
        run: The run.
    """
    with writing("results_dir", folder, "writing the records of a bench"):
        folder.mkdir(parents=True, exist_ok=True)
        # Two runs may end in the same moment.
        with FileLock(folder / f".{machine.stem}.lock"):
            for file in _names(folder, machine):
                if not file.exists():
                    earlier: list[Bench] = []
                    break
                try:
                    there = read(file)
                except RecordError:
                    continue
                if there.machine == machine:
                    earlier = there.runs
                    break
            write(file, Document(machine=machine, runs=[*earlier, run]))
    return file


def _names(folder: Path, machine: Machine) -> Iterator[Path]:
    yield folder / f"{machine.stem}.json"
    number = 2
    while True:
        yield folder / f"{machine.stem}-{number}.json"
        number += 1
