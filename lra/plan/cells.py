"""The state of each cell of a sweep, by what is on disk: done, to do, or something in between."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from lra import checkpoint, custom
from lra.build import build_task
from lra.cell import finished, identity, resolved_values
from lra.compose import place
from lra.config import Config, ConfigError
from lra.loop import LOG_EVERY
from lra.machine import resolve_device
from lra.paths import PRETRAINING
from lra.plan.cost import Cost
from lra.record import RECORD, Method, RecordError, read_record
from lra.tasks import DataError, Source, cache
from lra.variant import NO_PRETRAINING
from lra.words import value_of

State = Literal[
    "to do",
    "continues",
    "failed before",
    "done",
    "conflict",
    "elsewhere",
    "no model",
    "cannot run",
    "refused",
]
# Bytes of an example's offset and label in the cache, and of a named scalar in a TensorBoard file.
INDEX_BYTES, EVENT_BYTES = 16, 75


@dataclass(frozen=True, kw_only=True)
class Data:
    """The data of a cell.

    Args:
        folder: Where they are, or will be, in the cache.
        built: The data set; None if it is yet to be built.
        missing: Whether there is nothing to build it from.
        sizes: Number of examples of each split.
        bytes: Bytes that a build will write, at most; 0 if the data set is already built.
    """

    folder: Path
    built: cache.Dataset | None
    missing: bool
    sizes: dict[str, int]
    bytes: int


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedCell:
    """One cell of a sweep: its state and what is left of it.

    Args:
        task: Task.
        method: Backend and variant.
        seed: Seed.
        state: `to do`; `continues`: there is a checkpoint; `failed before`: it is tried again;
            `done`; `conflict`: another configuration's record or checkpoint is in its folder;
            `elsewhere`: it needs a GPU that this machine lacks; `no model`: it cannot be built;
            `cannot run`: a step raises an error; `refused`: it cannot be composed.
        detail: The reason, in words.
        step: Updates already made.
        pretraining_step: Updates of pretraining already made; 0 once training has begun.
        config: Its configuration; None if it is refused.
        folder: Its run folder.
        values: What its hash covers.
        data: Its data.
        cost: What was measured; None if nothing was.
        words: Its words.
    """

    task: str
    method: Method
    seed: int
    state: State = "to do"
    detail: str = ""
    step: int = 0
    pretraining_step: int = 0
    config: Config | None = None
    folder: Path = Path()
    values: dict[str, Any] = field(default_factory=dict)
    data: Data | None = None
    cost: Cost | None = None
    words: tuple[str, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether the sweep will train it."""
        return self.state in ("to do", "continues", "failed before")

    @property
    def updates(self) -> int:
        """Updates that are left."""
        return self.config.train.steps - self.step if self.config and self.is_open else 0

    @property
    def pretraining_updates(self) -> float:
        """Updates of pretraining that are left, in updates of training with as many examples."""
        if self.config is None or not self.is_open or self.step:
            return 0.0
        before, train = self.config.pretrain, self.config.train
        if before.name == NO_PRETRAINING:
            return 0.0
        return (before.steps - self.pretraining_step) * before.batch_size / train.batch_size

    @property
    def validations(self) -> int:
        """Validations that are left: one every `validate_every` updates, one after the last."""
        if self.config is None or not self.updates:
            return 0
        every, steps = self.config.train.validate_every, self.config.train.steps
        return steps // every - self.step // every + bool(steps % every)

    @property
    def validation_seconds(self) -> float:
        """Seconds of one validation."""
        assert self.config and self.data and self.cost
        return self.data.sizes[self.config.validation] * self.cost.example_seconds

    @property
    def test_seconds(self) -> float:
        """Seconds of the test."""
        assert self.data and self.cost
        return self.data.sizes["test"] * self.cost.example_seconds

    @property
    def seconds(self) -> float:
        """Seconds that are left: updates, validations and the test.

        Pretraining counts with its updates, as if each took as long as one of training.
        """
        if self.cost is None:
            return 0.0
        validating = self.validations * self.validation_seconds
        updates = self.pretraining_updates + self.updates
        return updates * self.cost.update_seconds + validating + self.test_seconds

    @property
    def disk(self) -> int:
        """Bytes that it leaves on disk: a checkpoint, chosen parameters, TensorBoard events."""
        if self.cost is None:
            return 0
        # The checkpoint holds the model twice, now and as validation chose it, and AdamW's moments.
        tensors = 3 * self.cost.model_bytes + 2 * self.cost.parameter_bytes
        events = 3 * (self.updates // LOG_EVERY + self.validations)
        events += self.validations * (1 + self.cost.num_tensors)
        return tensors + EVENT_BYTES * events

    def memory(self, base: int) -> float:
        """Return the bytes that it holds at its peak, at most.

        Args:
            base: Bytes that a process holds before it has a model.
        """
        if self.cost is None:
            return 0.0
        return self.memory_between(base) + self.cost.step_bytes

    def memory_between(self, base: int) -> float:
        """Return the bytes that it holds between updates; saving copies them from a GPU."""
        if self.cost is None:
            return 0.0
        return base + 2 * self.cost.model_bytes + 2 * self.cost.parameter_bytes


def assess(words: Sequence[str]) -> PlannedCell:
    """Find out the state of a cell.

    Args:
        words: Its words.

    Raises:
        ConfigError: The seed is not a number.
    """
    chosen = {"task": "listops", "attention": "softmax", "seed": "0"}
    chosen |= {key: str(value_of(text)) for key, _, text in (w.partition("=") for w in words)}
    task, attention, seed = chosen["task"], chosen["attention"], chosen["seed"]
    if not seed.isdecimal():
        raise ConfigError(f"seed={seed}: must be a whole number, 0 or more")
    own = attention.replace(":", ".")
    cell = PlannedCell(task=task, method=Method(own), seed=int(seed), words=tuple(words))
    try:
        config, folder = place(*words)
    except ConfigError as error:
        return replace(cell, state="refused", detail=str(error).splitlines()[0])
    method = Method(config.attention.name, config.variant)
    cell = replace(cell, method=method, seed=config.seed, config=config, folder=folder)
    try:
        device = resolve_device(config.device)
    except ConfigError as error:
        # If the GPU is elsewhere, what matters is whether the cell is finished.
        device, elsewhere = torch.device(config.device.partition(":")[0]), str(error)
    else:
        elsewhere = ""
    try:
        task_ = build_task(config)
        cell = replace(
            cell, data=_data(config), values=resolved_values(config, task_, device, folder)
        )
    except ConfigError as error:
        return replace(cell, state="no model", detail=str(error))
    if config.force:
        return replace(cell, state="elsewhere", detail=elsewhere) if elsewhere else cell
    try:
        if finished(folder, cell.values):
            return replace(cell, state="done")
        if elsewhere:
            return replace(cell, state="elsewhere", detail=elsewhere)
        step = _reached(cell, folder, config.train.steps)
        before = 0
        if not step and config.pretrain.name != NO_PRETRAINING:
            before = _reached(cell, folder / PRETRAINING, config.pretrain.steps)
        cell = replace(cell, step=step, pretraining_step=before)
    except ConfigError as error:
        return replace(cell, state="conflict", detail=str(error))
    if reason := _failure(folder):
        return replace(cell, state="failed before", detail=reason)
    return replace(cell, state="continues") if step or before else cell


def _data(config: Config) -> Data:
    """Find out what there is of a cell's data, and what a build will write."""
    task, missing = build_task(config), False
    try:
        source = task.locate(config.raw_data_dir())
    except DataError:
        source, missing = Source("published", ""), True
    name, caches = config.task.name, Path(config.cache_dir)
    folder = caches / f"{name}-{cache.key(task, source)}"
    built = cache.built(name, task, caches, source)
    if built is not None:
        sizes = {split: len(examples) for split, examples in built.splits.items()}
        return Data(folder=folder, built=built, missing=False, sizes=sizes, bytes=0)
    stored = getattr(task, "bytes_per_sequence", config.task.truncate)
    size = sum(task.sizes.values()) * (config.task.sequences * stored + INDEX_BYTES)
    return Data(folder=folder, built=None, missing=missing, sizes=task.sizes, bytes=size)


def _reached(cell: PlannedCell, folder: Path, steps: int) -> int:
    """Return the number of updates in a checkpoint of a cell, 0 without one.

    Args:
        cell: The cell.
        folder: Where its training or its pretraining keeps its checkpoints.
        steps: Updates of the whole of that.

    Raises:
        ConfigError: The checkpoint is damaged or belongs to another cell.
    """
    assert cell.data is not None and cell.config is not None
    found = checkpoint.load_last(folder, torch.device("cpu"))
    if found is None:
        return 0
    (file, state), built = found, cell.data.built
    # Data that are not built yet are assumed to be those that the checkpoint was trained on.
    own = custom.sources(cell.config.attention)
    if built:
        known = identity(cell.values, built.fingerprint, own)
        known.check(file, state, steps)
    return int(state["progress"]["step"])


def _failure(folder: Path) -> str:
    """Return why the run that left a record failed; an empty string if none did."""
    try:
        record = read_record(folder / RECORD)
    except RecordError:
        return ""
    return record.reason if record.status == "failed" else ""
