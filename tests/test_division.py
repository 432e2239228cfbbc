"""Micro-batches: the update of the whole batch, whatever the model, and never out of memory."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_cell import TINY, configure
from torch import Tensor, nn

import lra.compose
from lra import division
from lra.batches import TRIM, Batch, Batches
from lra.build import build_model
from lra.cell import finished
from lra.checkpoint import BEST, CHECKPOINT, Identity, load
from lra.classification import Classification
from lra.config import ConfigError, comparable
from lra.division import WHOLE, Division, division_for, is_out_of_memory, needs_whole_batch
from lra.evaluation import predict
from lra.loop import Run
from lra.precision import scaler_for
from lra.record import RECORD, read_record
from lra.runner import CellFailedError, run_cell
from lra.tasks import Split
from lra.update import accumulate
from models import ATTENTION

CPU = torch.device("cpu")
LENGTHS = [9, 80, 33, 32, 1, 64, 65, 50, 96, 17, 40, 72]


def split_of(lengths: list[int], sequences: int = 1) -> Split:
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 15, sum(lengths)).astype(np.uint8)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Split(tokens, offsets, rng.integers(0, 10, len(lengths) // sequences))


def batches_of(split: Split, trim: bool = True) -> Batches:
    return Batches(split, padded_length=96, truncate=96, id_shift=0, trim=trim, device=CPU)


def gradients(model: nn.Module, parts: list[Batch]) -> list[Tensor]:
    """Return the loss and the gradients of all parameters."""
    model.zero_grad()
    loss = accumulate(model, parts, "float32", scaler_for(CPU, "float32"))
    return [loss, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


DIVISIONS = [
    Division(examples=1),
    Division(examples=5),
    Division(tokens=200),
    Division(squares=96**2 + 1),
    Division(tokens=192, shapes=3),
]


# Every pooling and either number of sequences; other combinations are for `make test-all`.
POOLED = [("cls", 1), ("mean", 1), ("mean_padded", 2)]
REST = [("cls", 2), ("mean", 2), ("mean_padded", 1)]


@pytest.mark.parametrize(
    ("pooling", "sequences"),
    [*POOLED, *(pytest.param(*each, marks=pytest.mark.slow) for each in REST)],
)
@pytest.mark.parametrize("attention", ATTENTION)
def test_gradients_are_those_of_the_whole_batch(
    attention: str, pooling: str, sequences: int
) -> None:
    without_dropout = ("model.dropout=0.0", "model.attention_dropout=0.0", "task.truncate=96")
    sizes = ("model.max_length=96", f"model.pooling={pooling}", f"task.sequences={sequences}")
    config = lra.compose.load(*TINY, f"attention={attention}", *without_dropout, *sizes)
    model = build_model(config).double()
    trim = model.encoder.pad_invariant
    batches = batches_of(split_of(LENGTHS, sequences), trim)
    size = len(batches)
    whole = gradients(model, batches.divided(3, size, 0, WHOLE))
    for each in DIVISIONS:
        parts = batches.divided(3, size, 0, each)
        assert 1 < len(parts) <= size
        for ours, theirs in zip(gradients(model, parts), whole, strict=True):
            assert (ours - theirs).norm() <= 1e-6 * theirs.norm().clamp(min=1e-12), each


@pytest.mark.parametrize("attention", ["s4d", "ema", "mega"])
def test_a_kernel_is_computed_once_per_update_whatever_the_micro_batches(attention: str) -> None:
    sizes = ("model.max_length=96", "task.truncate=96", "model.layers=2")
    model = build_model(lra.compose.load(*TINY, f"attention={attention}", *sizes))
    made: list[int] = []
    for module in model.modules():
        if hasattr(module, "kernels"):
            module.kernels = lambda length, make=module.kernels: made.append(length) or make(length)
    batches = batches_of(split_of(LENGTHS))
    for update in range(2):
        made.clear()
        parts = batches.divided(update, len(batches), 0, Division(examples=1))
        assert len(parts) == 12
        gradients(model, parts)
        assert made == [96, 96]


def test_micro_batches_partition_the_batch_each_trimmed_to_its_own_longest() -> None:
    split = split_of(LENGTHS)
    batches = batches_of(Split(split.tokens, split.offsets, np.arange(12)))
    whole = batches.shuffled(5, 7, seed=1)
    parts = batches.divided(5, 7, 1, Division(tokens=130))
    labels = torch.cat([part.labels for part in parts])
    assert sorted(labels.tolist()) == sorted(whole.labels.tolist())
    lengths = [LENGTHS[label] for label in labels]
    assert lengths == sorted(lengths, reverse=True)
    assert sum(part.num_tokens for part in parts) == whole.num_tokens == sum(lengths)
    for part in parts:
        longest = max(LENGTHS[label] for label in part.labels)
        assert part.tokens.shape[1] == min(96, -(-longest // TRIM) * TRIM)
        assert len(part.labels) == 1 or part.tokens.numel() <= 130
        assert part.whole == 7


def test_an_undivided_batch_is_the_batch_as_it_was_drawn() -> None:
    batches = batches_of(split_of(LENGTHS))
    [part] = batches.divided(2, 8, 3, WHOLE)
    assert torch.equal(part.tokens, batches.shuffled(2, 8, 3).tokens)


def test_an_example_that_exceeds_the_budget_stands_alone() -> None:
    widths = [96, 96, 64, 32, 32, 32]
    assert Division(tokens=90).divide(widths) == [
        slice(0, 1),
        slice(1, 2),
        slice(2, 3),
        slice(3, 5),
        slice(5, 6),
    ]
    # A pair counts with both of its sequences.
    assert Division(tokens=128).rows(32, sequences=2) == 2
    assert Division(squares=2 * 64**2).rows(64) == 2
    assert Division(squares=2 * 64**2, tokens=100).rows(64) == 1


def test_few_shapes_are_computed_whatever_the_lengths() -> None:
    rng = np.random.default_rng(0)
    batches = batches_of(split_of(rng.integers(1, 97, 500).tolist()))
    shapes = set()
    for step in range(60):
        parts = batches.divided(step, 32, 0, Division(tokens=200, shapes=2))
        shapes |= {(part.tokens.shape, part.mask is None) for part in parts}
        assert sum(int(part.weights.sum()) for part in parts if part.weights is not None) == 32
    assert shapes == {(torch.Size([3, 64]), False), (torch.Size([2, 96]), False)}


def test_evaluation_divides_by_tokens_and_counts_the_same() -> None:
    rng = np.random.default_rng(1)
    split = split_of(rng.integers(1, 97, 70).tolist())
    model = build_model(lra.compose.load(*TINY, "model.max_length=96", "task.truncate=96"))
    train = lra.compose.load(*TINY).train
    batches, budget = batches_of(split), Division(tokens=400)
    sizes = [len(group) for group in batches.groups(16, budget)]
    assert sum(sizes) == 70 and max(sizes) <= 12 and len(set(sizes)) > 2
    order = np.concatenate(batches.groups(16, budget))
    assert sorted(order) == list(range(70))
    assert (np.diff(split.lengths[order]) >= 0).all()
    counts = {
        micro: predict(model, batches, replace(train, micro_batch=micro)).num_correct
        for micro in (None, 0, 3)
    }
    assert len(set(counts.values())) == 1


def test_the_budget_is_the_same_on_every_cpu_and_follows_the_memory_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build_model(lra.compose.load(*TINY))
    cpu = division_for(None, model, CPU)
    assert (cpu.tokens, cpu.squares) == (division.CPU_TOKENS, division.CPU_SQUARES)
    budgets = []
    for size in (8e9, 80e9):
        monkeypatch.setattr(division.memory, "total", lambda device, size=size: size)
        budgets.append(division_for(None, model, torch.device("cuda")).tokens)
    assert budgets[1] == pytest.approx(10 * budgets[0], rel=1e-3) and budgets[0] > 2**16
    assert division_for(0, model, CPU) == WHOLE
    assert division_for(6, model, CPU) == Division(examples=6)
    assert division_for(None, model, CPU, compiled=True).shapes == 8
    assert division_for(0, model, CPU, compiled=True) == Division(shapes=8)


@pytest.mark.parametrize(
    ("words", "grows"),
    [
        ((), False),
        (("attention=mra", "attention.options.block_size=32"), False),
        (("attention.options.fused=false",), True),
        (("attention=wavspa", "attention.inner.options.fused=false"), True),
    ],
)
def test_squares_of_lengths_limit_a_gpu_only_if_memory_grows_with_them(
    words: tuple[str, ...], grows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(division.memory, "total", lambda device: 80e9)
    model = build_model(lra.compose.load(*TINY, *words))
    assert bool(division_for(None, model, torch.device("cuda")).squares) == grows
    # A model that declares nothing may hold any backend.
    unknown = nn.Linear(3, 3)
    assert division_for(None, unknown, torch.device("cuda")).squares


def test_a_compiled_whole_batch_has_one_of_few_shapes() -> None:
    division = Division(shapes=3)
    rng = np.random.default_rng(0)
    shapes = set()
    for step in range(40):
        batches = batches_of(split_of(rng.integers(1, 97, 12).tolist()))
        [batch] = batches.divided(step, 6, 0, division)
        assert sorted(batch.examples.tolist()) == sorted(batches.drawn(step, 6, 0).tolist())
        shapes.add(batch.tokens.shape)
    assert len(shapes) <= 3 and all(shape[0] == 6 for shape in shapes)
    assert Division.parse(str(division)) == division


def test_statistics_over_the_batch_keep_it_whole() -> None:
    class Own(nn.Module):
        whole_batch = True

    for module in (nn.BatchNorm1d(3), Own()):
        model = nn.Sequential(nn.Linear(3, 3), module)
        assert needs_whole_batch(model) and division_for(4, model, CPU) == WHOLE
        assert division_for(4, model, CPU, compiled=True) == Division(shapes=8)
    assert not needs_whole_batch(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)))


def test_memory_errors_are_distinguished_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as failed:
        torch.empty(2**60)
    assert is_out_of_memory(failed.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA")) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


class Small(nn.Module):
    """A model on a machine with memory for few examples, which draws dropout before it fails."""

    def __init__(self, inner: nn.Module, fits: int) -> None:
        super().__init__()
        self.inner, self.fits, self.refused = inner, fits, 0

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        logits: Tensor = self.inner(tokens, mask)
        if len(tokens) > self.fits:
            self.refused += 1
            torch.empty(2**60)
        return logits


def run_of(folder: Path, fits: int, micro_batch: int | None) -> tuple[Run, Small]:
    overrides = [] if micro_batch is None else [f"train.micro_batch={micro_batch}"]
    config = configure(folder, "train.batch_size=8", "train.steps=20", *overrides)
    model = Small(build_model(config), fits)
    folder.mkdir(exist_ok=True)
    batches = batches_of(split_of(LENGTHS))
    objective = Classification(batches, batches)
    torch.manual_seed(0)
    known = Identity("id", {}, "")
    return Run(model, config.train, objective, CPU, folder, 0, known, "cell"), model


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cut sequences to what the tiny model has positions for."""
    gather = Batches.gather

    def cut(self: Batches, *arguments: object, **named: object) -> Batch:
        batch = gather(self, *arguments, **named)
        mask = None if batch.mask is None else batch.mask[:, :40]
        return replace(batch, tokens=batch.tokens[:, :40], mask=mask)

    monkeypatch.setattr(Batches, "gather", cut)
    yield


def test_running_out_of_memory_halves_the_micro_batch_and_keeps_the_update(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, wide: None
) -> None:
    small, model = run_of(tmp_path / "small", fits=2, micro_batch=0)
    small.fit()
    assert model.refused >= 2
    lines = [record.message for record in caplog.records if "out of memory" in record.message]
    assert "step 0: out of memory with 8 examples at once; retrying with at most 4" in lines[0]
    assert small.division.examples == 2
    # With the generators restored, the run is the same as one that began with so few.
    large, _ = run_of(tmp_path / "large", fits=8, micro_batch=2)
    large.fit()
    states = [run.model.state_dict() for run in (small, large)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_cell_fails_if_even_one_example_does_not_fit_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.softmax.Softmax.forward", lambda *args: torch.empty(2**60))
    with pytest.raises(CellFailedError, match="can't allocate memory"):
        run_cell(configure(tmp_path), tmp_path)
    assert read_record(tmp_path / RECORD).status == "failed"


def test_a_resumed_run_keeps_the_division_it_arrived_at(tmp_path: Path, wide: None) -> None:
    first, _ = run_of(tmp_path, fits=2, micro_batch=0)
    first.fit()
    again, model = run_of(tmp_path, fits=8, micro_batch=0)
    again.fit()
    assert again.division == first.division and model.refused == 0
    assert again.speed == first.speed
    other, _ = run_of(tmp_path, fits=8, micro_batch=1)
    other.fit()
    assert other.division == Division(examples=1)


def test_micro_batch_is_outside_the_hash_and_the_record_says_what_was_used(tmp_path: Path) -> None:
    record = run_cell(configure(tmp_path, "train.micro_batch=3"), tmp_path)
    assert record is not None
    assert (record.micro_batch, record.micro_batches) == ("at most 3 examples", 2.0)
    whole = configure(tmp_path, "train.micro_batch=0")
    assert run_cell(whole, tmp_path) is None
    assert finished(
        tmp_path, comparable(whole, device="cpu", threads=1, data=record.config["data"])
    )


def test_the_same_micro_batches_give_the_same_bits(tmp_path: Path) -> None:
    models = []
    for name in "ab":
        (tmp_path / name).mkdir()
        run_cell(configure(tmp_path, "train.micro_batch=2", "train.steps=12"), tmp_path / name)
        models.append(load(tmp_path / name / BEST, CPU)["model"])
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])
    assert load(tmp_path / "a" / CHECKPOINT, CPU)["division"]["examples"] == 2


def test_a_negative_micro_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train.micro_batch=-1: must be at least 0"):
        lra.compose.load("train.micro_batch=-1")


@pytest.mark.parametrize(
    "division",
    [
        WHOLE,
        Division(examples=3),
        Division(tokens=4096, squares=2**22, shapes=8),
        Division(examples=1200, tokens=2048, squares=2**21),
    ],
)
def test_a_division_is_read_back_from_its_words_in_a_record(division: Division) -> None:
    assert Division.parse(str(division)) == division


@pytest.mark.parametrize("words", ["", "at most 3 sheep", "whole, at most 3 examples"])
def test_words_that_describe_no_division_are_refused(words: str) -> None:
    with pytest.raises(ValueError, match="not a division of a batch"):
        Division.parse(words)
