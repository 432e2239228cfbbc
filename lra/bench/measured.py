"""Store bench results: one JSON file per machine, with every run of the bench on it.

The file contains everything that a table or picture shows, down to the single timings, so that both
can be remade without measuring and without torch.
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

from lra.bench.growth import Growth, growth
from lra.folders import replacing, writing
from lra.record import RecordError
from lra.tasks import lock
from lra.typecheck import describe, fits

KIND, SCHEMA = "lra bench", 1
Mode = Literal["training", "inference"]
MODES: tuple[Mode, Mode] = ("training", "inference")
# Numbers of a cell that can be looked up by name.
Quantity = Literal["seconds", "peak_memory_bytes", "flops"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A backend at a length, in training or inference.

    Args:
        attention: Its name, with the options chosen for it.
        length: Tokens per sequence.
        mode: An update on a batch, or a forward pass alone.
        seconds: Seconds of one such step, every timing in the order taken.
        calls: Number of steps that each timing averages.
        peak_memory_bytes: Memory that a step adds to the tensors that exist before it.
        flops: Operations of a step; see `lra.flops`.
        parameters: Number of parameters of the model.
        failed: Why there is no timing; empty if there is one.
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
        """Interquartile range of the seconds divided by their median."""
        low, high = self.quartiles
        return (high - low) / self.median

    def value(self, quantity: Quantity) -> float:
        """Return a number of the cell by name; for seconds, the median."""
        return self.median if quantity == "seconds" else float(getattr(self, quantity))


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One run of the bench, measured in turn within one process.

    Args:
        when: Date and time of its end, in UTC.
        device: `cpu`, `cuda` or `mps`.
        threads: CPU threads.
        dtype: Precision.
        compiled: Whether models ran through `torch.compile`.
        task: Task whose recipe defines the model.
        protocol: Protocol of the recipe.
        batch_size: Examples per step.
        attention_dropout: Probability of dropping an attention weight in training.
        total_seconds: Duration of the whole run.
        torch: Version of torch.
        python: Version of Python.
        commit: Commit of the suite; empty if unknown.
        dirty: Whether the code differed from that commit.
        cells: The measurements.
        sequences: Sequences per example; two if pairs are compared.
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
        """The backends, in the order of the request."""
        return list(dict.fromkeys(cell.attention for cell in self.cells))

    @property
    def lengths(self) -> list[int]:
        """The lengths in ascending order."""
        return sorted({cell.length for cell in self.cells})

    def cell(self, attention: str, length: int, mode: Mode) -> Cell | None:
        """Return the measurement of a backend at a length; None if it failed."""
        found = (
            cell
            for cell in self.cells
            if (cell.attention, cell.length, cell.mode) == (attention, length, mode)
        )
        cell = next(found, None)
        return None if cell is None or cell.failed else cell

    def of(self, attention: str, mode: Mode) -> list[Cell]:
        """Return the measurements of a backend, by length."""
        cells = (self.cell(attention, length, mode) for length in self.lengths)
        return [cell for cell in cells if cell is not None]

    def growth(self, attention: str, mode: Mode, quantity: Quantity) -> Growth | None:
        """Return how a quantity of a backend grows with the length."""
        cells = self.of(attention, mode)
        return growth([cell.length for cell in cells], [cell.value(quantity) for cell in cells])


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine that ran a bench.

    Args:
        name: Processor or GPU.
        processors: Number of processors.
        id: Distinguishes machines of the same kind, and reveals nothing else about them.
    """

    name: str
    processors: int
    id: str

    @property
    def stem(self) -> str:
        """The name of its file, without suffix."""
        return f"{re.sub(r'[^a-z0-9]+', '-', self.name.lower()).strip('-')}-{self.id}"


def this_machine(name: str) -> Machine:
    """Return this machine.

    Args:
        name: Processor or GPU.
    """
    host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]
    return Machine(name=name, processors=os.cpu_count() or 1, id=host)


@dataclass(frozen=True, kw_only=True)
class Document:
    """The content of a machine's file.

    Args:
        machine: The machine.
        runs: Runs of the bench, the newest last; at least one.
    """

    machine: Machine
    runs: list[Bench]


def read(file: Path) -> Document:
    """Read a machine's file and check every key.

    Raises:
        RecordError: The file is damaged or foreign; the message names the file and the key.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{file}: not readable as JSON ({error})") from error
    if not is_one(values) or values.get("schema") != SCHEMA:
        raise RecordError(f"{file}: not the records of a bench of schema {SCHEMA}")
    try:
        runs = [
            _checked(Bench, run | {"cells": [_checked(Cell, cell) for cell in run["cells"]]})
            for run in values["runs"]
        ]
        found = Document(machine=_checked(Machine, values["machine"]), runs=runs)
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{file}: {error}") from error
    if not runs:
        raise RecordError(f"{file}: has no runs, must have at least 1")
    return found


def is_one(values: Any) -> bool:
    """Return whether the content of a JSON file is marked as the records of a bench."""
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
    instance = kind(**values)
    if isinstance(instance, Cell):
        _check_numbers(instance)
    return instance


def _check_numbers(cell: Cell) -> None:
    """Raise if a cell that has not failed lacks a number or has an impossible one."""
    if cell.failed:
        return
    where = f"{cell.attention} at {cell.length}, {cell.mode}"
    if not cell.seconds or not all(0 < each < float("inf") for each in cell.seconds):
        raise ValueError(f"{where}: seconds={cell.seconds} must be positive, with at least one")
    for key in ("length", "peak_memory_bytes", "flops", "parameters"):
        if getattr(cell, key) < 1:
            raise ValueError(f"{where}: {key}={getattr(cell, key)} must be at least 1")


def write(file: Path, document: Document) -> None:
    """Write a machine's file atomically."""
    values = {"kind": KIND, "schema": SCHEMA, **asdict(document)}
    with replacing(file) as target:
        target.write((json.dumps(values, indent=1) + "\n").encode())


def add(folder: Path, machine: Machine, run: Bench) -> Path:
    """Add a run to the file of its machine, and return the file.

    An existing file of another machine or of another kind is left alone: a number is then added to
    the name.

    Args:
        folder: Folder of the machines' files; it is created if it does not exist.
        machine: The machine.
        run: The run.
    """
    with writing("results_dir", folder, "writing the records of a bench"):
        folder.mkdir(parents=True, exist_ok=True)
        # Two runs may end at the same moment.
        with lock.held(folder / f".{machine.stem}.lock", "adds a run"):
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
