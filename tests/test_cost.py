"""What a plan measures, against closed forms that a fake clock and allocator obey."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lra import machine, memory
from lra.batches import Batch, Batches
from lra.build import batches_for, build_model, build_task
from lra.compose import load
from lra.config import Config
from lra.division import Division
from lra.plan import cost
from lra.plan.cost import (
    StepEstimator,
    crop_batch,
    extrapolate,
    full_length,
    measure,
    select_examples,
    stratified,
)
from lra.tasks import Split, cache

CPU = torch.device("cpu")


def configure(*overrides: str) -> Config:
    options = [
        "num_train=40",
        "num_validation=12",
        "num_test=16",
        "min_length=9",
        "max_length=90",
        "max_depth=4",
    ]
    words = [f"task.options.{option}" for option in options]
    words += ["task=listops", "scale=mini", "threads=1", "device=cpu", "train.batch_size=4"]
    return load(*words, "task.truncate=90", "model.max_length=90", *overrides)


def split_of(lengths: list[int], sequences: int = 1) -> Split:
    """Return a split whose token values identify their sequence."""
    tokens = np.repeat(np.arange(len(lengths)), lengths).astype(np.uint8)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Split(tokens, offsets, np.arange(len(lengths) // sequences))


@pytest.mark.parametrize(("a", "b"), [(3.0, 0.0), (0.0, 0.5), (2.0, 0.25)])
def test_a_quadratic_is_recovered_from_two_of_its_points(a: float, b: float) -> None:
    def value(n: int) -> float:
        return a * n + b * n * n

    assert extrapolate((7, value(7)), (13, value(13)), 90) == pytest.approx(value(90))


def test_noise_never_makes_a_longer_sequence_cheaper() -> None:
    assert extrapolate((10, 5.0), (20, 4.0), 40) == pytest.approx(8.0)
    # Steeper than a square: no more than a square is assumed.
    assert extrapolate((10, 1.0), (20, 9.0), 40) == pytest.approx(36.0)


class Machine:
    """A machine that takes n (a w + b w^2) seconds and n c w^2 bytes for n rows of w tokens.

    On top of that every step takes `overhead` seconds.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, total: float = 1e12) -> None:
        self.now, self.steps, self.overhead = 0.0, [], 0.0
        self.a, self.b, self.c = 1e-5, 2e-8, 40.0
        clock = SimpleNamespace(perf_counter=lambda: self.now)
        monkeypatch.setattr(cost, "time", clock)
        monkeypatch.setattr(machine, "time", clock)
        monkeypatch.setattr(memory, "total", lambda device: total)
        monkeypatch.setattr(memory, "peak_of", self.peak_of)

    def step_of(self, rows: int, width: int) -> cost.Step:
        def step() -> None:
            self.steps.append((rows, width))
            self.now += self.seconds(rows, width)

        return step

    def seconds(self, rows: int, width: int) -> float:
        return self.overhead + rows * (self.a * width + self.b * width**2)

    def peak_of(self, step: cost.Step, device: torch.device) -> int:
        step()
        rows, width = self.steps[-1]
        return int(rows * self.c * width**2)


@pytest.mark.parametrize("width", [100, 2_000, 4_096, 16_384])
@pytest.mark.parametrize("batch_size", [1, 32])
@pytest.mark.parametrize("budget", [0.5, 5.0, 500.0])
def test_any_budget_leads_to_the_time_of_the_whole_batch(
    monkeypatch: pytest.MonkeyPatch, width: int, batch_size: int, budget: float
) -> None:
    machine = Machine(monkeypatch)
    reading = StepEstimator(machine.step_of, batch_size, width, CPU, budget).whole()
    assert reading.seconds == pytest.approx(machine.seconds(batch_size, width))
    assert reading.bytes == pytest.approx(batch_size * machine.c * width**2)
    assert (reading.rows, reading.width) == machine.steps[-1]
    # One row of the shortest part is measured in any case.
    if width >= cost.LONG:
        assert machine.now <= budget + 4 * machine.seconds(1, width // 8)
    if budget == 500.0:
        assert reading.width == width and reading.repeats >= 3
        assert machine.seconds(reading.rows, width) >= cost.ENOUGH / 2 or reading.rows == batch_size


@pytest.mark.parametrize("overhead", [0.01, 0.4])
def test_the_overhead_of_every_step_is_counted_once(
    monkeypatch: pytest.MonkeyPatch, overhead: float
) -> None:
    machine = Machine(monkeypatch)
    machine.overhead = overhead
    reading = StepEstimator(machine.step_of, 256, 200, CPU, 5.0).whole()
    assert reading.rows > 1
    assert reading.seconds == pytest.approx(machine.seconds(256, 200))


def test_a_spent_budget_allows_no_further_step(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    machine.overhead = 60.0
    StepEstimator(machine.step_of, 4, 200, CPU, 5.0).whole()
    # The first touch of memory, one for its peak, and one that is timed.
    assert len(machine.steps) == 3


def test_a_first_step_that_compiles_uses_up_none_of_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(monkeypatch)
    plain = machine.seconds
    machine.seconds = lambda rows, width: plain(rows, width) + 12.0 * (not machine.steps[1:])
    reading = StepEstimator(machine.step_of, 32, 200, CPU, 5.0).whole()
    assert reading.rows == 32
    assert reading.seconds == pytest.approx(plain(32, 200))


def test_rows_are_never_free_even_if_noise_hides_their_cost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(monkeypatch)
    machine.seconds = lambda rows, width: 0.5
    reading = StepEstimator(machine.step_of, 32, 200, CPU, 6.5).whole()
    assert 1 < reading.rows < 32
    assert reading.seconds >= 32 / reading.rows * 0.5


def test_no_step_is_tried_that_would_take_more_than_its_share_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(monkeypatch, total=40.0 * 4_096**2)
    reading = StepEstimator(machine.step_of, 8, 4_096, CPU, 1e9).whole()
    assert max(width for _, width in machine.steps) == reading.width == 2_048
    assert reading.bytes == pytest.approx(8 * 40.0 * 4_096**2)
    machine = Machine(monkeypatch, total=4 * 5.5 * 40.0 * 1_000**2)
    machine.a = machine.b = 1e-8
    assert StepEstimator(machine.step_of, 8, 1_000, CPU, 1e9).whole().rows == 4


def test_examples_are_taken_with_all_their_sequences() -> None:
    split = split_of([3, 1, 4, 1, 5, 9], sequences=2)
    taken = select_examples(split, np.array([2, 0]))
    assert taken.labels.tolist() == [2, 0]
    assert taken.lengths.tolist() == [5, 9, 3, 1]
    assert taken.tokens.tolist() == [4] * 5 + [5] * 9 + [0] * 3 + [1]


def test_validation_is_measured_at_the_middle_of_every_quarter_of_the_lengths() -> None:
    lengths = list(np.random.default_rng(0).permutation(np.arange(1, 41)))
    picked = stratified(split_of(lengths), truncate=100, rows=1, bins=4)
    assert sorted(picked.lengths) == [6, 16, 26, 36]
    assert sorted(stratified(split_of(lengths), 100, rows=3, bins=4).lengths)[:3] == [5, 6, 7]
    # Truncated tokens make no difference, and no more examples are taken than there are.
    assert len(stratified(split_of([5, 900, 7]), truncate=10, rows=64, bins=4)) == 3


def test_a_cropped_batch_keeps_its_first_rows_and_their_first_tokens() -> None:
    tokens = torch.arange(3 * 2 * 5).reshape(3, 2, 5)
    batch = Batch(tokens, tokens % 2 == 0, torch.arange(3), 30)
    cut = crop_batch(batch, 2, 3)
    assert cut.mask is not None and batch.mask is not None
    assert cut.tokens.equal(tokens[:2, :, :3]) and cut.mask.equal(batch.mask[:2, :, :3])
    assert cut.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    "division", [Division(), Division(shapes=3), Division(tokens=10**6), Division(tokens=200)]
)
def test_a_batch_that_stays_whole_counts_at_its_longest_length(division: Division) -> None:
    split = split_of([20, 30, 40, 64, 200] * 20)
    options = {"padded_length": 512, "truncate": 512, "id_shift": 0, "trim": True}
    batches = Batches(split, device=torch.device("cpu"), **options)
    width, longest = cost.typical_width(batches, 16, division)
    at_once = division.rows(longest) >= 16
    # Some of the 16 are of the longest length, which is rounded up further for few shapes.
    assert width == longest if at_once else width < longest
    assert longest == (384 if division.shapes else 224)


@pytest.mark.parametrize("task", ["listops", "text", "retrieval", "pathfinder"])
def test_without_data_examples_have_the_full_length_and_no_padding(task: str) -> None:
    config = load(f"task={task}", "scale=mini")
    split = full_length(config, build_task(config), 6)
    batches = batches_for(config, build_task(config), build_model(config), split)
    batch = batches.shuffled(0, 6, 0)
    assert batch.mask is None or bool(batch.mask.all())
    assert bool((batch.tokens > 0).all())
    assert int(batch.tokens.max()) < config.task.num_symbols
    assert batch.tokens.shape[-1] == config.task.truncate
    assert batch.num_tokens == 6 * config.task.sequences * config.task.truncate


def test_a_cell_is_measured_on_its_own_batches(tmp_path: Path) -> None:
    config = configure("attention=softmax")
    task = build_task(config)
    model = build_model(config)
    measured = measure(config, task, None, CPU, budget=0.2)
    assert (measured.batch_size, measured.batch_width, measured.width) == (4, 90, 90)
    assert measured.model_bytes == 4 * sum(p.numel() for p in model.parameters())
    assert measured.parameter_bytes == measured.model_bytes
    assert measured.num_tensors == len(list(model.parameters()))
    assert min(measured.update_seconds, measured.example_seconds, measured.step_bytes) > 0
    short = split_of([20] * 12)
    short = Split(short.tokens % 9 + 1, short.offsets, short.labels % 10)
    splits = {"train": short, "validation": short}
    # Real lengths: batches are trimmed for softmax, not for a transform of the whole length.
    assert measure(config, task, splits, CPU, budget=0.2).batch_width == 32
    whole = measure(configure("attention=fourier"), task, splits, CPU, budget=0.2)
    assert whole.batch_width == 90


def test_sizes_stated_before_a_build_are_those_of_the_build(tmp_path: Path) -> None:
    for name in ("text", "retrieval", "image", "pathfinder"):
        options = ["num_train=9", "num_validation=5", "num_test=7"]
        words = [f"task.options.{option}" for option in options]
        config = load(f"task={name}", "scale=mini", *words)
        task = build_task(config)
        built = cache.load(name, task, tmp_path).splits
        assert task.sizes == {split: len(examples) for split, examples in built.items()}
    published = {
        "listops": (96_000, 2_000, 2_000),
        "text": (22_500, 2_500, 25_000),
        "retrieval": (147_086, 18_090, 17_437),
        "image": (45_000, 5_000, 10_000),
        "pathfinder": (160_000, 20_000, 20_000),
        "pathx": (160_000, 20_000, 20_000),
    }
    for name, sizes in published.items():
        assert tuple(build_task(load(f"task={name}")).sizes.values()) == sizes
