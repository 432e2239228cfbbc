"""What a cell will cost: seconds per update and per pass over validation and test, memory, disk.

The real model performs a few real updates at its real length, with as many sequences as a few
seconds allow, and the time is scaled to the whole batch. If one sequence alone would take too long
or too much memory, it is measured at two partial lengths, and a quadratic through both gives the
whole. Batches are computed in micro-batches, as in training; if these are trimmed to their own
longest sequence, a sequence counts with the root mean square of the lengths. If threads take a
micro-batch each, one thread is timed, and its time is divided by the gain from several. Data in the
cache are read; otherwise, sequences have the full length.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lra import memory, side_by_side
from lra.batches import TRIM, Batch, Batches
from lra.build import Model, batches_for, build_model
from lra.config import Config, TrainConfig
from lra.division import Division, division_for
from lra.evaluation import predict
from lra.machine import seconds_of
from lra.optimiser import optimiser_for
from lra.precision import scaler_for
from lra.tasks import Split, Task
from lra.update import update

# Seconds within which the measurement of a cell should stay.
BUDGET = 5.0
# A step that takes this many seconds is long enough to be scaled up.
ENOUGH = 0.15
# Number of tokens from which a part of the length is measured first.
LONG = 2_500
# Number of bins by length in which validation is measured, for backends that read no padding.
BINS = 4
# Share of a core that each thread with micro-batches of its own gives: docs/speed.md has two
# threads between .68 and .97.
OF_A_CORE = 0.85
# A step may take this share of the total memory.
MEMORY_SHARE = 0.25

Step = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What was measured for a cell.

    Args:
        update_seconds: Seconds per update of the whole batch.
        example_seconds: Seconds per example in evaluation.
        step_bytes: Bytes of tensors that an update of the whole batch adds at its peak, at most.
        model_bytes: Bytes of the model's parameters and buffers.
        parameter_bytes: Bytes of its trainable parameters.
        num_tensors: Number of its trainable tensors.
        repeats: Number of timed updates.
        rows: Sequences, or pairs, per timed update.
        width: Their length in tokens.
        batch_size: Sequences, or pairs, in a whole batch.
        batch_width: The length of a whole batch.
    """

    update_seconds: float
    example_seconds: float
    step_bytes: float
    model_bytes: int
    parameter_bytes: int
    num_tensors: int
    repeats: int
    rows: int
    width: int
    batch_size: int
    batch_width: int


@dataclass(frozen=True)
class Reading:
    """A measured step, on a part of the batch or of the length of one example."""

    seconds: float
    bytes: float
    rows: int
    width: int
    repeats: int = 1


def full_length(config: Config, task: Task, count: int) -> Split:
    """Return `count` random examples of the full length, in place of missing data."""
    length, sequences = config.task.truncate, count * config.task.sequences
    rng = np.random.default_rng(0)
    # Id 0 is padding, and a symbol is a byte.
    low, high = 1 - task.id_shift, min(256, config.task.num_symbols - task.id_shift)
    tokens = rng.integers(low, high, sequences * length, np.uint8)
    labels = rng.integers(config.task.num_classes, size=count)
    return Split(tokens, np.arange(sequences + 1) * length, labels)


def select_examples(split: Split, examples: NDArray[np.int64]) -> Split:
    """Return a split of some examples of another, in the order given."""
    per_example = len(split.lengths) // len(split)
    sequences = (examples[:, None] * per_example + np.arange(per_example)).ravel()
    parts = [split.tokens[split.offsets[i] : split.offsets[i + 1]] for i in sequences]
    offsets = np.concatenate([[0], np.cumsum(split.lengths[sequences])])
    return Split(np.concatenate(parts), offsets, split.labels[examples])


def stratified(split: Split, truncate: int, rows: int, bins: int) -> Split:
    """Return `rows` examples from the middle of each of `bins` equally large bins by length.

    Args:
        split: The data.
        truncate: Longest part of a sequence that is read.
        rows: Examples from each bin; fewer if there are not as many.
        bins: Number of bins.
    """
    bins = min(bins, len(split))
    rows = min(rows, len(split) // bins)
    lengths = np.minimum(split.lengths, truncate).reshape(len(split), -1).max(1)
    order = np.argsort(lengths, kind="stable")
    firsts = (2 * np.arange(bins) + 1) * len(split) // (2 * bins) - rows // 2
    firsts = firsts.clip(0, len(split) - rows)
    return select_examples(split, order[(firsts[:, None] + np.arange(rows)).ravel()])


def crop_batch(batch: Batch, rows: int, width: int) -> Batch:
    """Return the first `rows` examples of a batch, cut to their first `width` tokens."""

    def cut(tensor: Tensor) -> Tensor:
        return tensor[:rows, ..., :width]

    mask = None if batch.mask is None else cut(batch.mask)
    return replace(batch, tokens=cut(batch.tokens), mask=mask, labels=batch.labels[:rows])


def extrapolate(small: tuple[int, float], large: tuple[int, float], at: int) -> float:
    """Return a n + b n^2 at n = `at`, through two points (n, value), without negative a or b."""
    (n, value), (m, more) = small, large
    curvature = max(0.0, (more / m - value / n) / (m - n))
    slope = max(0.0, more / m - curvature * m)
    return slope * at + curvature * at * at if slope else more * (at / m) ** 2


def timed(step: Step, seconds: float, device: torch.device, least: int = 1) -> tuple[float, int]:
    """Time a step repeatedly.

    Args:
        step: What is timed.
        seconds: How long to go on.
        device: Where it computes.
        least: Minimum number of calls.

    Returns:
        The median seconds of a call, and the number of calls.
    """
    times: list[float] = []
    while len(times) < least or sum(times) < seconds:
        times.append(seconds_of(step, device))
    return statistics.median(times), len(times)


def extrapolated(small: Reading, large: Reading, width: int) -> Reading:
    """Return what one row of a given width takes, extrapolated from two narrower ones."""
    seconds = extrapolate((small.width, small.seconds), (large.width, large.seconds), width)
    size = extrapolate((small.width, small.bytes), (large.width, large.bytes), width)
    return Reading(seconds, size, 1, width)


class StepEstimator:
    """Measure a step, from a cheap part of it up to as much of it as time and memory allow.

    Args:
        step_of: Makes a step of a given number of rows with a given number of tokens each.
        batch_size: Rows of the whole step.
        width: Tokens of the whole step.
        device: Where it computes.
        budget: Seconds that all of this should take after the first step; a single step may take
            longer.
        at_once: Rows of the whole width that are computed at once, at most.
    """

    def __init__(
        self,
        step_of: Callable[[int, int], Step],
        batch_size: int,
        width: int,
        device: torch.device,
        budget: float,
        at_once: int = 2**31,
    ) -> None:
        self._at_once = at_once
        self._step_of, self._batch_size, self._width = step_of, batch_size, width
        self._device, self._budget, self._end = device, budget, 0.0
        self._most_bytes = MEMORY_SHARE * memory.total(device)

    def whole(self) -> Reading:
        """Return the seconds and bytes of the whole step, and the part that was timed."""
        *before, one = self._up_to_one_row()
        if one.width < self._width:
            row, rows = extrapolated(before[-1], one, self._width), self._batch_size
            return Reading(rows * row.seconds, self._bytes(row, rows), 1, one.width)
        most = self._more_rows(one)
        rows, seconds, repeats = most.rows, most.seconds, 1
        each = seconds / rows
        # A busy moment of the machine, or a first touch of memory, must not pass for slowness.
        if calls := max(0, min(3, int(self._left() / (1.5 * seconds)))):
            if rows > 1:
                half, _ = timed(self._step_of(rows // 2, self._width), 0.0, self._device, calls)
            seconds, repeats = timed(self._step_of(rows, self._width), ENOUGH, self._device, calls)
            # What a step costs at any size must not be counted with each row that is added: on a
            # busy machine, threads wait for each other in every operation.
            # If noise hides the difference, all of it is counted.
            each = seconds / rows
            if rows > 1 and seconds > half:
                each = (seconds - half) / (rows - rows // 2)
        seconds += each * (self._batch_size - rows)
        return Reading(seconds, self._bytes(one, self._batch_size), rows, one.width, repeats)

    def _bytes(self, one: Reading, rows: int) -> float:
        return min(rows, self._at_once) * one.bytes

    def _left(self) -> float:
        return self._end - time.perf_counter()

    def _affordable(self, reading: Reading, rows: int, width: int) -> bool:
        """Return whether time and memory allow a larger part and its half to be made three times.

        Args:
            reading: A smaller part, from which this is estimated.
            rows: Rows of the larger part.
            width: Tokens of the larger part.
        """
        # Growth that is quadratic in the length is the worst case.
        growth = (width / reading.width) ** 2
        seconds = 4.5 * rows / reading.rows * growth * reading.seconds
        at_once = [min(each, self._at_once) for each in (rows, reading.rows)]
        size = at_once[0] / at_once[1] * growth * reading.bytes
        return seconds <= self._left() and size <= self._most_bytes

    def _up_to_one_row(self) -> list[Reading]:
        """Return readings of one row, up to its whole width or the last that is affordable."""
        whole = self._width
        at = whole if whole < LONG else max(TRIM, whole // 16)
        self._step_of(1, at)()
        # The budget does not cover the first step of a process, which may compile for longer.
        self._end = time.perf_counter() + self._budget
        readings = [self._one(at)]
        while (at := readings[-1].width) < whole:
            # At least two readings, for a curve through them.
            wider = [min(whole, 2 * at)]
            if len(readings) > 1:
                small, large = readings[-2:]
                curve = {width: extrapolated(small, large, width) for width in (whole, *wider)}
                wider = [width for width in curve if self._affordable(curve[width], 1, width)]
            if not wider:
                break
            readings.append(self._one(wider[0]))
        return readings

    def _one(self, width: int) -> Reading:
        step = self._step_of(1, width)
        # The profiled call also does the setup that happens only once.
        size = memory.peak_of(step, self._device)
        return Reading(timed(step, 0.0, self._device)[0], size, 1, width)

    def _more_rows(self, reading: Reading) -> Reading:
        """Return a reading of as many rows as there is time for.

        On a CPU, a small part of a batch fits the caches, and the whole does not.
        """
        one = reading
        while reading.rows < self._batch_size:
            aim = ENOUGH if reading.seconds < ENOUGH else self._left() / 4
            rows = min(self._batch_size, max(2, int(aim / reading.seconds)) * reading.rows)
            while rows > reading.rows and not self._affordable(reading, rows, self._width):
                rows //= 2
            if rows <= reading.rows:
                break
            seconds, _ = timed(self._step_of(rows, self._width), 0.0, self._device)
            reading = Reading(seconds, self._bytes(one, rows), rows, self._width)
        return reading


def evaluation(
    config: Config,
    task: Task,
    model: Model,
    split: Split,
    device: torch.device,
) -> float:
    """Return the seconds per example in evaluation, without dropout and sorted by length."""
    truncate, most = config.task.truncate, config.train.eval_batch_size
    bins = BINS if model.encoder.pad_invariant and np.ptp(split.lengths) else 1
    rows = 1
    while True:
        sample = stratified(split, truncate, rows, bins)
        numbers = np.array_split(np.arange(len(sample)), min(bins, len(sample)))
        parts = [
            batches_for(config, task, model, select_examples(sample, each)) for each in numbers
        ]
        train = replace(config.train, eval_batch_size=rows)

        def step(parts: list[Batches] = parts, train: TrainConfig = train) -> None:
            for batches in parts:
                predict(model, batches, train)

        seconds, _ = timed(step, 0.0, device)
        if seconds >= ENOUGH:
            return seconds / len(sample)
        if rows >= most or len(sample) < rows * bins:
            return timed(step, ENOUGH, device, least=2)[0] / len(sample)
        rows = min(most, max(2, int(ENOUGH / seconds)) * rows)


def typical_width(
    batches: Batches, batch_size: int, division: Division, sequences: int = 1
) -> tuple[int, int]:
    """Return the length with which a sequence of a batch counts, and the longest, in tokens.

    Args:
        batches: Batches of the data.
        batch_size: Examples per batch.
        division: What is computed at once.
        sequences: Sequences per example.
    """
    alone = Division(examples=1)
    widths = [batch.tokens.shape[-1] for batch in batches.divided(0, 4 * batch_size, 0, alone)]
    if division.rows(max(widths), sequences) >= batch_size:
        # A batch that stays whole is as wide as its longest sequence.
        some = (batches.divided(n, batch_size, 0, division)[0] for n in range(5))
        width = sorted(batch.tokens.shape[-1] for batch in some)[2]
        return width, width
    mean_square = statistics.mean(width**2 for width in widths)
    return min(max(widths), -(-math.isqrt(int(mean_square)) // TRIM) * TRIM), max(widths)


def _together(model: Model, num_parts: int, device: torch.device, train: TrainConfig) -> int:
    """Return how many threads take a micro-batch each; 1 if they work inside operations."""
    alone = train.compile or scaler_for(device, train.precision).is_enabled()
    if alone or not side_by_side.suits(model, num_parts, device):
        return 1
    return min(torch.get_num_threads(), num_parts)


def _size(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes that tensors take."""
    return sum(each.numel() * each.element_size() for each in tensors)


def _steps(
    model: Model, batches: Batches, config: Config, division: Division, device: torch.device
) -> Callable[[int, int], Step]:
    """Return a function that makes an update of a number of examples of a width.

    Args:
        model: The network.
        batches: What the updates are drawn from.
        config: The cell.
        division: How a batch is computed.
        device: Where it computes.
    """
    optimiser, _ = optimiser_for(model, config.train)
    scaler = scaler_for(device, config.train.precision)
    numbers = itertools.count()

    def step_of(rows: int, width: int) -> Step:
        def step() -> None:
            number = next(numbers)
            if division.is_whole or rows == 1:
                size = config.train.batch_size
                parts = [crop_batch(batches.shuffled(number, size, config.seed), rows, width)]
            else:
                parts = batches.divided(number, rows, config.seed, division)
            update(model, optimiser, parts, config.train, scaler)

        return step

    return step_of


def measure(
    config: Config,
    task: Task,
    splits: Mapping[str, Split] | None,
    device: torch.device,
    budget: float = BUDGET,
) -> Cost:
    """Measure a cell.

    Args:
        config: The cell.
        task: Its task.
        splits: Its data; without them examples have the full length.
        device: Where it computes.
        budget: Seconds that this should take.

    Raises:
        ConfigError: The backend refuses its options.
    """
    model = build_model(config).to(device)
    batch_size = config.train.batch_size
    if splits is None:
        examples = full_length(config, task, max(batch_size, config.train.eval_batch_size))
        splits = {"train": examples, config.validation: examples}
    # Drawn at random, as batches are: the longest sequence of a batch decides what it costs.
    train = splits["train"]
    some = np.random.default_rng(0).integers(len(train), size=min(len(train), 4 * batch_size))
    batches = batches_for(config, task, model, select_examples(train, some))
    division = division_for(config.train.micro_batch, model, device, config.train.compile)
    model.train()
    width, longest = typical_width(batches, batch_size, division, config.task.sequences)
    at_once = min(batch_size, division.rows(width, config.task.sequences))
    num_parts = -(-batch_size // at_once)
    together = _together(model, num_parts, device, config.train)
    step_of = _steps(model, batches, config, division, device)
    with side_by_side.threads_set(1 if together > 1 else torch.get_num_threads()):
        reading = StepEstimator(step_of, batch_size, width, device, budget, at_once).whole()
        each = evaluation(config, task, model, splits[config.validation], device)
    # The last round may leave threads without a micro-batch; a split has many batches.
    rounds = -(-num_parts // together)
    faster = max(1.0, OF_A_CORE * num_parts / rounds)
    waiting = min(num_parts, 2 * together) - together if together > 1 else 0
    trainable = [p for p in model.parameters() if p.requires_grad]
    parameter_bytes = _size(trainable)
    # A module's extra state may hold anything.
    tensors = [each for each in model.state_dict().values() if isinstance(each, torch.Tensor)]
    return Cost(
        update_seconds=reading.seconds / faster,
        example_seconds=each / max(1.0, OF_A_CORE * together),
        # A longer sequence takes no more than the square of its length.
        step_bytes=together * reading.bytes * (longest / width) ** 2 + waiting * parameter_bytes,
        model_bytes=_size(tensors),
        parameter_bytes=parameter_bytes,
        num_tensors=len(trainable),
        repeats=reading.repeats,
        rows=reading.rows,
        width=reading.width,
        batch_size=batch_size,
        batch_width=width,
    )
