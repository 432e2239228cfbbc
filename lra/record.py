"""The record that a cell leaves, and how records are read back.

A record is one flat JSON object, written once. It says what was measured, on which data, with
which configuration, by which code and on which machine.
"""

import itertools
import json
import logging
import math
import os
import platform
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_type_hints

from lra.folders import replacing, writing
from lra.paths import runs_dir
from lra.typecheck import describe, fits
from lra.variant import NO_PRETRAINING, UNKNOWN, flat
from lra.words import shown

if TYPE_CHECKING:
    import pandas

log = logging.getLogger(__name__)

SCHEMA = 1
RECORD = "result.json"
# Beside it: the lock that keeps two processes apart, and a note of who trains the cell or did last.
LOCK, NOTE = ".lock", "state.json"


class Method(NamedTuple):
    """What is compared: a backend, and the name of what was overridden.

    Args:
        attention: Backend.
        variant: Its variant; `default` if nothing was overridden.
    """

    attention: str
    variant: str = "default"

    def __str__(self) -> str:
        return self.attention if self.variant == "default" else f"{self.attention} ({self.variant})"


Status = Literal["ok", "failed"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One cell's result.

    Args:
        task: Task.
        attention: Backend.
        attention_source: Path and hash of the file of a user's own backend; the commit covers the
            suite's backends.
        variant: Name of what was overridden.
        protocol: Protocol.
        scale: Scale.
        seed: Seed.
        status: `ok` or `failed`.
        reason: Why it failed.
        pretrain: What came before training: `none`, or `spt`.
        pretrain_objective: What the encoder predicted then: `hidden` tokens, or the `next` one.
        pretrain_steps: Updates of pretraining; `steps` does not count them.
        pretrain_seconds: Seconds of pretraining, validation included.
        pretrain_loss: Best mean loss of pretraining over the validation split; None if not
            measured.
        test_accuracy: Share of the test set classified correctly, 0 to 1.
        test_correct: Number of test examples classified correctly.
        test_total: Number of all test examples.
        test_majority_rate: Share of the test set's most frequent label.
        test_by_length: Bins of the test set by length, short first, if lengths vary: `least` and
            `most` tokens of an example's longest sequence as read, `correct` and `total`.
        test_by_group: The same by what the task groups its examples by; empty if it does not.
        group: What that is, such as `distance, in tokens`; empty if there is none.
        selected_on: Split on which the checkpoint was chosen: `validation` or `test`.
        best_accuracy: Accuracy by which the checkpoint was chosen, 0 to 1.
        best_step: Updates the chosen checkpoint had seen.
        steps: Total number of updates.
        loss_fingerprint: Fingerprint of the loss at every update, which `trajectory.npz` holds;
            empty in older records.
        skipped_updates: How many of them float16's loss scaling skipped.
        train_seconds: Seconds in updates, without validation.
        seconds: Total seconds, data and evaluation included.
        steps_per_second: Updates per second, the median over windows of some updates; in records
            without `speed_windows`, updates divided by `train_seconds`.
        steps_per_second_low: First quartile over these windows.
        steps_per_second_high: Third quartile over these windows.
        speed_windows: Number of these windows.
        tokens_per_second: Real tokens per second, the median over the same windows.
        first_call_seconds: Seconds of updates that set up or compiled something; part of
            `train_seconds`, but of no window.
        micro_batch: What was computed at once, in words.
        first_micro_batch: What was computed at once before that changed within the run, because
            memory ran out or because `train.micro_batch` did; empty if it did not change.
        first_micro_batch_updates: Number of updates before it first changed; 0 if it did not.
        micro_batches: Micro-batches per update, on average.
        compiled_shapes: Number of shapes of micro-batches that were compiled.
        peak_memory_bytes: Peak of the GPU's allocator, or of the process if it ran on the CPU.
        parameters: Number of trainable parameters.
        data_fingerprint: sha256 of the data.
        data_source: `published`, `generated` or `stand-in`.
        data_description: The same in words.
        data_skipped_rows: Number of bad rows left out of all splits, as `on_bad_row=skip` asks.
        deviations: What the protocol does differently from the published code.
        config: The whole resolved configuration.
        config_hash: Hash of the part of the configuration that can change the numbers.
        machine: Processor, or GPU.
        device: `cpu`, `cuda` or `mps`.
        dtype: Precision.
        compiled: Whether the model ran through `torch.compile`.
        threads: CPU threads of each process.
        processes: Processes that shared every batch when the run ended.
        torch: Version of torch.
        python: Version of Python.
        commit: Git commit of the suite that ended the run; empty if it is unknown.
        dirty: Whether the working tree differed from it.
        earlier_code: Commits that began the run, in order, if another one continued it.
        earlier_machines: The same for processors or GPUs, each with its version of torch.
        departures: Departures from the recipe, such as `train.steps=3 instead of 5000`.
        schema: Version of this layout.
    """

    task: str
    attention: str
    variant: str
    protocol: str
    scale: str
    seed: int
    status: Status
    reason: str = ""
    attention_source: str = ""
    pretrain: str = NO_PRETRAINING
    pretrain_objective: str = ""
    pretrain_steps: int = 0
    pretrain_seconds: float = 0.0
    pretrain_loss: float | None = None
    test_accuracy: float | None = None
    test_correct: int | None = None
    test_total: int | None = None
    test_majority_rate: float | None = None
    test_by_length: list[dict[str, int]] = field(default_factory=list)
    test_by_group: list[dict[str, int]] = field(default_factory=list)
    group: str = ""
    selected_on: str
    best_accuracy: float | None = None
    best_step: int | None = None
    steps: int
    loss_fingerprint: str = ""
    skipped_updates: int = 0
    train_seconds: float | None = None
    seconds: float
    steps_per_second: float | None = None
    steps_per_second_low: float = 0.0
    steps_per_second_high: float = 0.0
    speed_windows: int = 0
    tokens_per_second: float | None = None
    first_call_seconds: float = 0.0
    micro_batch: str = "whole"
    first_micro_batch: str = ""
    first_micro_batch_updates: int = 0
    micro_batches: float = 1.0
    compiled_shapes: int = 0
    peak_memory_bytes: int | None = None
    parameters: int
    data_fingerprint: str
    data_source: str
    data_description: str
    data_skipped_rows: int = 0
    deviations: list[str]
    config: dict[str, Any]
    config_hash: str
    machine: str
    device: str
    dtype: str
    compiled: bool
    threads: int
    torch: str
    python: str = field(default_factory=platform.python_version)
    commit: str
    dirty: bool
    earlier_code: str = ""
    earlier_machines: str = ""
    processes: int = 1
    departures: str = UNKNOWN
    schema: int = SCHEMA

    @property
    def speed_spread(self) -> float | None:
        """Interquartile range of the speed divided by its median; None if it was not measured."""
        if self.speed_windows < 2 or not self.steps_per_second:
            return None
        return (self.steps_per_second_high - self.steps_per_second_low) / self.steps_per_second

    @property
    def place(self) -> tuple[str, str, str, str]:
        """Its run folder, below the folder of its scale and protocol."""
        return self.task, self.attention, self.variant, f"seed{self.seed}"

    @property
    def method(self) -> Method:
        """Backend and variant."""
        return Method(self.attention, self.variant)


class RecordError(ValueError):
    """A file is not a record of this schema."""


def write_record(folder: Path, record: Record) -> None:
    """Write `result.json` into a run folder, completely or not at all."""
    text = json.dumps(asdict(record), indent=1) + "\n"
    with writing("runs_dir", folder, f"writing {RECORD}"), replacing(folder / RECORD) as file:
        file.write(text.encode())


def set_aside(folder: Path) -> None:
    """Rename a record that this version cannot read, and say so.

    It may belong to a later version, or hold something that a person can still read.
    """
    try:
        read_record(folder / RECORD)
    except RecordError as error:
        if not (folder / RECORD).exists():
            return
        names = (f"result.aside-{number}.json" for number in itertools.count(1))
        kept = next(folder / name for name in names if not (folder / name).exists())
        with writing("runs_dir", folder, f"setting {RECORD} aside"):
            os.replace(folder / RECORD, kept)
        log.warning("%s; kept as %s", error, kept.name)


def read_record(file: Path) -> Record:
    """Read a record and check every key against the schema.

    Raises:
        RecordError: The file is damaged or not a record; the message names file and key.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RecordError(f"{file}: no such file; no run has ended here") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{file}: not readable as JSON ({error})") from error
    return checked_record(values, str(file))


def checked_record(values: Any, where: str) -> Record:
    """Return values read from JSON as a record, with every key checked against the schema.

    Args:
        values: What was read.
        where: What an error message begins with.

    Raises:
        RecordError: They are not a record; the message names the key.
    """
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        found = values.get("schema") if isinstance(values, dict) else None
        raise RecordError(f"{where}: schema {found!r}, should be {SCHEMA}")
    hints = get_type_hints(Record)
    # A record may be older than a key that has a default.
    defaults = {f.name: f.default for f in fields(Record) if f.default not in (MISSING, None)}
    younger = dict.fromkeys(_OF_PRETRAINING) | {"test_by_length": [], "test_by_group": []}
    values = defaults | younger | values
    if wrong := sorted(set(values) ^ set(hints)):
        state = "missing" if wrong[0] in hints else "unknown"
        raise RecordError(f"{where}: key {wrong[0]!r} is {state}")
    for key, kind in hints.items():
        if not fits(values[key], kind):
            raise RecordError(f"{where}: {key}={values[key]!r} must be {describe(kind)}")
    optional = () if values["pretrain"] != NO_PRETRAINING else _OF_PRETRAINING
    missing = [key for key, value in values.items() if value is None and key not in optional]
    if values["status"] == "ok" and missing:
        raise RecordError(f"{where}: {missing[0]} is null though status is ok")
    record = Record(**values)
    if reason := inconsistency(record):
        raise RecordError(f"{where}: {reason}")
    return record


# Keys that are measured only if there was pretraining.
_OF_PRETRAINING = ("pretrain_loss",)
# No count and no time of a run can exceed this.
_MAX = 2**63
_SHARES = ("test_accuracy", "test_majority_rate", "best_accuracy")


def inconsistency(record: Record) -> str:
    """Return, in words, what in a record is impossible; an empty string if nothing is."""
    for group in ("task", "attention", "model", "train", "protocol"):
        if not isinstance(found := record.config.get(group, {}), dict):
            return f"config.{group}={shown(repr(found))} is impossible, should hold keys"
    for key, value in vars(record).items():
        if isinstance(value, bool) or not isinstance(value, int | float) or key == "seed":
            continue
        most = 1 if key in _SHARES else _MAX
        if not (math.isfinite(value) and 0 <= value <= most):
            bound = "a share, 0 to 1" if key in _SHARES else "a finite number, at least 0"
            return f"{key}={value} is impossible, should be {bound}"
    if least := next((key for key in ("threads", "processes") if getattr(record, key) < 1), ""):
        return f"{least}={getattr(record, least)} is impossible, should be at least 1"
    correct, total, accuracy = record.test_correct, record.test_total, record.test_accuracy
    if correct is not None and total is not None:
        if correct > total or not total:
            return f"test_correct={correct} is impossible with test_total={total}"
        if accuracy is not None and not math.isclose(accuracy, correct / total, abs_tol=1e-6):
            return f"test_accuracy={accuracy} is impossible for {correct} of {total}"
    for bins in ("test_by_length", "test_by_group"):
        if getattr(record, bins) and (reason := _impossible_bins(record, bins)):
            return reason
    if record.best_step is not None and record.best_step > record.steps:
        return f"best_step={record.best_step} is impossible with steps={record.steps}"
    return ""


# Keys of a record, and where its configuration has the same value.
_DUPLICATED_KEYS = {
    "task": "task.name",
    "attention": "attention.name",
    "variant": "variant",
    "protocol": "protocol.name",
    "scale": "scale",
    "seed": "seed",
    "pretrain": "pretrain.name",
    "dtype": "train.precision",
    "selected_on": "validation",
    "compiled": "train.compile",
    "device": "device",
    "threads": "threads",
}


def contradiction(record: Record) -> str:
    """Return, in words, where a record contradicts its configuration; else an empty string."""
    there = {"pretrain.name": NO_PRETRAINING, **dict(flat(record.config))}
    for key, place in _DUPLICATED_KEYS.items():
        recorded = getattr(record, key)
        if place in there and recorded != there[place]:
            own = shown(repr(there[place]))
            return f"{key}={shown(repr(recorded))} contradicts its configuration, which has {own}"
    steps = there.get("train.steps", record.steps)
    if record.status == "ok" and record.steps != steps:
        return f"steps={record.steps} contradicts its configuration, which has train.steps={steps}"
    return ""


def _impossible_bins(record: Record, name: str) -> str:
    """Return what in a record's accuracy by bins is impossible; an empty string if nothing is.

    Args:
        record: The record.
        name: Key that holds the bins.
    """
    keys, bins = {"least", "most", "correct", "total"}, getattr(record, name)
    for each in bins:
        values = [each.get(key) for key in sorted(keys)]
        if each.keys() != keys or not all(type(v) is int and v >= 0 for v in values):
            return f"{name}={each} is impossible, should have {', '.join(sorted(keys))}"
        if each["correct"] > each["total"] or each["least"] > each["most"]:
            return f"{name}={each} is impossible"
    for key, whole in (("correct", record.test_correct), ("total", record.test_total)):
        if (found := sum(each[key] for each in bins)) != whole:
            return f"{name} sums to {key}={found}, should be test_{key}={whole}"
    return ""


def read_records(folder: Path) -> Iterator[Record]:
    """Yield the records below a folder, sorted by path; name and leave out invalid ones."""
    for file in sorted(folder.glob(f"**/{RECORD}")):
        try:
            record = read_record(file)
        except RecordError as error:
            log.warning("left out: %s", error)
            continue
        if file.parent.absolute().parts[-4:] != record.place:
            log.warning("left out: %s is the record of %s", file, "/".join(record.place))
        elif wrong := contradiction(record):
            log.warning("left out: %s: %s", file, wrong)
        else:
            yield record


def records_of(runs_dir: Path, scale: str, protocol: str) -> Iterator[Record]:
    """Yield the records of a scale and protocol; name and leave out misplaced ones.

    Args:
        runs_dir: Folder of run folders.
        scale: Scale.
        protocol: Protocol.
    """
    folder = runs_dir / scale / protocol
    for record in read_records(folder):
        if (record.scale, record.protocol) == (scale, protocol):
            yield record
        else:
            there = "/".join((record.scale, record.protocol, *record.place))
            log.warning("left out: %s has the record of %s", folder, there)


def records(folder: Path | str | None = None) -> "pandas.DataFrame":
    """Return the records below a folder, one per row.

    Args:
        folder: A runs folder, or part of one; by default the folder of all runs.

    Returns:
        A table whose columns are the keys of `Record`; keys of the configuration are named
        as on the command line, after `config.`, such as `config.train.steps`.
    """
    import pandas

    rows = [asdict(record) for record in read_records(Path(folder or runs_dir()))]
    return pandas.json_normalize(rows)
