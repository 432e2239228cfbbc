"""Micro-batches on several threads give the bits of one thread, whatever happens on the way."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_division import CPU, LENGTHS, batches_of, split_of
from tiny_cell import TINY, configure
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lra.compose
from lra import side_by_side
from lra.batches import Batch, Batches
from lra.build import build_model
from lra.division import Division
from lra.evaluation import predict
from lra.loop import Run
from lra.precision import scaler_for
from lra.runner import run_cell
from lra.signals import UnfinishedError
from lra.update import accumulate
from models import ATTENTION
from models.dropout import Dropout
from models.softmax import Softmax


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def model_of(attention: str, *overrides: str) -> nn.Module:
    sizes = ("model.max_length=96", "task.truncate=96", "model.layers=2", *overrides)
    return build_model(lra.compose.load(*TINY, f"attention={attention}", *sizes)).train()


def parts_of(model: nn.Module, sequences: int = 1) -> list[Batch]:
    batches = batches_of(split_of(LENGTHS, sequences), model.encoder.pad_invariant)
    return batches.divided(0, len(batches), 0, Division(examples=2))


def found(
    model: nn.Module, parts: list[Batch], number: int, precision: str = "float32"
) -> list[Tensor]:
    """Return the loss, all gradients, and what torch's generator gives next."""
    torch.set_num_threads(number)
    torch.manual_seed(5)
    model.zero_grad()
    loss = accumulate(model, parts, precision, scaler_for(CPU, precision))
    assert torch.get_num_threads() == number
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [loss, *grads, torch.rand(3)]


def assert_same(these: list[Tensor], those: list[Tensor]) -> None:
    assert len(these) == len(those)
    for one, other in zip(these, those, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("attention", ATTENTION)
def test_gradients_are_bitwise_equal_to_those_of_one_thread(attention: str) -> None:
    pair = attention == "softmax"
    model = model_of(attention, f"task.sequences={1 + pair}")
    parts = parts_of(model, 1 + pair)
    torch.set_num_threads(3)
    assert side_by_side.suits(model, len(parts), CPU)
    one = found(model, parts, 1)
    assert len(one) > 5
    assert_same(found(model, parts, 3), one)


@pytest.mark.parametrize("attention", ["s4d", "ema"])
def test_shared_kernels_give_gradients_bitwise_equal_to_those_of_one_thread(attention: str) -> None:
    long = ("model.max_length=1024", "task.truncate=1024")
    model = model_of(attention, *long)
    lengths = [1024, 900, 800, 700]
    batches = Batches(
        split_of(lengths), padded_length=1024, truncate=1024, id_shift=0, trim=True, device=CPU
    )
    parts = batches.divided(0, 4, 0, Division(examples=1))
    one = found(model, parts, 1)
    for number in (2, 3):
        assert_same(found(model, parts, number), one)


def test_bfloat16_is_bitwise_equal_to_one_thread_even_if_a_weight_is_used_twice() -> None:
    model, attentions = with_attention(Twice)
    parts = parts_of(model)
    one = found(model, parts, 1, "bfloat16")
    for _ in range(8):
        assert_same(found(model, parts, 3, "bfloat16"), one)


def test_dropout_masks_depend_on_the_seed_alone() -> None:
    model = model_of("softmax")
    parts = parts_of(model)
    one = found(model, parts, 2)
    assert_same(found(model, parts, 2), one)
    assert not torch.equal(one[0], found(model.eval(), parts, 2)[0])


class Drawing(nn.Module):
    """Drops by torch's own generator, though it claims that threads may share it."""

    pad_invariant = thread_safe = True

    def __init__(self, shape: object) -> None:
        super().__init__()
        self.calls: list[str] = []

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        self.calls.append(threading.current_thread().name)
        return nn.functional.dropout(x, 0.5)


class Silent(Drawing):
    """Also draws from torch's generator, but does not itself claim that it may be shared."""


class Twice(nn.Module):
    pad_invariant = thread_safe = True

    def __init__(self, shape: object) -> None:
        super().__init__()
        self.linear = nn.Linear(*[lra.compose.load(*TINY).model.dim] * 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.linear(self.linear(x))


class Recomputed(nn.Module):
    """Computes a part of itself again in the backward pass."""

    pad_invariant = thread_safe = True

    def __init__(self, shape: object) -> None:
        super().__init__()
        self.drop = Dropout(0.5)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        part: Tensor = checkpoint(lambda t: self.drop(t) * t, x, use_reentrant=False)
        return part


class RecomputedAlone(Recomputed):
    pad_invariant = True


class TorchDropout(Drawing):
    """Claims so, but a layer of torch within it draws from torch's generator."""

    thread_safe = True

    def __init__(self, shape: object) -> None:
        super().__init__(shape)
        self.drop = nn.Dropout(0.5)


def with_attention(attention: type[nn.Module]) -> tuple[nn.Module, list[Drawing]]:
    model = model_of("softmax")
    inner = [m for m in model.modules() if type(m).__name__ == "Softmax"]
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if child in inner:
                setattr(module, name, attention(None))
    return model, [m for m in model.modules() if isinstance(m, attention)]


def test_an_attempt_that_draws_from_torchs_generator_is_noticed_and_undone() -> None:
    model, attentions = with_attention(Drawing)
    parts = parts_of(model)
    one = found(model, parts, 1)
    for _ in range(3):
        there = found(model, parts, 2)
        assert torch.equal(there[-1], one[-1])
        for grad, wanted in zip(there, one, strict=True):
            torch.testing.assert_close(grad, wanted)
    names = [name for each in attentions for name in each.calls]
    assert any(name.startswith("lra") for name in names)
    # Threads were tried only once.
    assert names.count(threading.main_thread().name) == 2 * len(parts) * 4


def test_a_part_recomputed_in_the_backward_pass_drops_the_same_or_is_refused() -> None:
    model, _ = with_attention(Recomputed)
    with pytest.raises(RuntimeError, match="must not declare thread_safe = True"):
        found(model, parts_of(model), 1)
    model, _ = with_attention(RecomputedAlone)
    x = torch.randn(3, 5, requires_grad=True)
    parts = parts_of(model)
    assert_same(found(model, parts, 1), found(model, parts, 1))
    output = RecomputedAlone(None)(x)
    [grad] = torch.autograd.grad(output.sum(), x)
    assert torch.equal(grad != 0, output != 0)


def test_a_users_backend_is_shared_only_if_its_own_class_says_so() -> None:
    torch.set_num_threads(2)
    for attention, wanted in ((Drawing, True), (Silent, False), (TorchDropout, False)):
        model, _ = with_attention(attention)
        assert side_by_side.suits(model, 4, CPU) == wanted


def test_with_few_micro_batches_and_many_threads_the_threads_work_within_operations() -> None:
    model = model_of("softmax")
    torch.set_num_threads(4)
    assert side_by_side.suits(model, 3, CPU)
    assert not side_by_side.suits(model, 2, CPU)
    assert not side_by_side.suits(model, 3, torch.device("meta"))
    compiled = model_of("softmax")
    compiled._orig_mod = nn.Identity()
    assert not side_by_side.suits(compiled, 3, CPU)
    hook = next(model.parameters()).register_post_accumulate_grad_hook(lambda _: None)
    assert not side_by_side.suits(model, 3, CPU)
    hook.remove()
    hook = next(m for m in model.modules() if type(m).__name__ == "Softmax").register_forward_hook(
        lambda *_: None
    )
    assert not side_by_side.suits(model, 3, CPU)
    hook.remove()
    assert side_by_side.suits(model, 3, CPU)
    torch.set_num_threads(1)
    assert not side_by_side.suits(model, 3, CPU)


def test_an_error_in_a_micro_batch_is_raised_once_nothing_is_running() -> None:
    model = model_of("softmax")
    parts = parts_of(model)
    parts[2] = replace(parts[2], labels=parts[2].labels[:-1])
    torch.set_num_threads(2)
    with pytest.raises(ValueError, match="batch_size"):
        accumulate(model, parts, "float32", scaler_for(CPU, "float32"))
    assert all(p.grad is None for p in model.parameters())
    assert torch.get_num_threads() == 2


def test_an_update_stops_between_micro_batches() -> None:
    model = model_of("softmax")
    asked: list[None] = []

    def stops() -> bool:
        asked.append(None)
        return len(asked) == 3

    torch.set_num_threads(2)
    scaler = scaler_for(CPU, "float32")
    with pytest.raises(UnfinishedError):
        accumulate(model, parts_of(model), "float32", scaler, stops=stops)


def test_micro_batches_run_one_after_another_if_memory_holds_only_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forward = Softmax.forward

    def greedy(self: Softmax, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if threading.current_thread() is not threading.main_thread():
            raise MemoryError("out of memory")
        return forward(self, x, mask)

    words = ("train.micro_batch=1", "train.steps=8", "train.validate_every=4")
    wanted = run_cell(configure(tmp_path, *words), tmp_path / "1")
    monkeypatch.setattr(Softmax, "forward", greedy)
    record = run_cell(configure(tmp_path, *words, "threads=2"), tmp_path / "2")
    assert record.test_accuracy == wanted.test_accuracy
    assert "retrying with one micro-batch after another (out of memory)" in caplog.text
    model = model_of("softmax")
    torch.set_num_threads(2)
    train = replace(lra.compose.load(*TINY).train, micro_batch=3)
    batches = batches_of(split_of(LENGTHS * 5))
    assert len(predict(model, batches, train).predicted) == 60
    assert "out of memory in evaluation; continuing with one batch after another" in caplog.text


def test_an_evaluation_stops_at_its_next_batch() -> None:
    model, asked = model_of("softmax"), []
    train = replace(lra.compose.load(*TINY).train, micro_batch=3)
    torch.set_num_threads(2)
    with pytest.raises(UnfinishedError):
        predict(
            model,
            batches_of(split_of(LENGTHS * 5)),
            train,
            stops=lambda: asked.append(1) or len(asked) == 3,
        )
    assert 3 <= len(asked) <= 8


def test_results_come_in_order_and_nothing_runs_after_the_last_one_taken() -> None:
    torch.set_num_threads(3)
    running: set[int] = set()
    started: list[int] = []

    def slow(number: int) -> int:
        started.append(number)
        running.add(number)
        time.sleep(0.001 * (7 - number % 7))
        running.remove(number)
        return number

    with closing(side_by_side.in_order(slow, range(40))) as results:
        assert list(results) == list(range(40))
    started.clear()
    with closing(side_by_side.in_order(slow, range(40))) as results:
        assert next(results) == 0
    assert not running
    assert len(started) <= 7
    results = side_by_side.in_order(slow, range(40))
    next(results)
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)
    assert not running
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("attention", ["softmax", "s4d", "fourier"])
def test_answers_in_evaluation_are_bitwise_equal_to_those_of_one_thread(attention: str) -> None:
    model = model_of(attention)
    batches = batches_of(split_of(LENGTHS * 5), model.encoder.pad_invariant)
    train = replace(lra.compose.load(*TINY).train, micro_batch=3)
    there = []
    for number in (1, 2):
        torch.set_num_threads(number)
        there.append(predict(model, batches, train))
    assert there[0].loss == there[1].loss
    assert (there[0].predicted == there[1].predicted).all()


def test_a_run_is_bitwise_equal_to_one_on_a_single_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    in_order = side_by_side.in_order
    monkeypatch.setattr(
        side_by_side, "in_order", lambda call, items: used.append(1) or in_order(call, items)
    )
    fits: list[dict[str, Tensor]] = []
    fit = Run.fit

    def kept(run: Run) -> object:
        progress = fit(run)
        fits.append({k: v.clone() for k, v in run.model.state_dict().items()})
        return progress

    monkeypatch.setattr(Run, "fit", kept)
    records = []
    for number in (1, 2):
        words = ("train.micro_batch=1", "train.steps=12", "train.validate_every=6")
        config = configure(tmp_path, *words, f"threads={number}")
        records.append(run_cell(config, tmp_path / f"{number}"))
    assert len(used) >= 12
    assert_same([*fits[0].values()], [*fits[1].values()])
    assert records[0].test_accuracy == records[1].test_accuracy
