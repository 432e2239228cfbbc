"""Every check of the contract can fail: a backend broken in one way fails the check for it."""

import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lra.check import main, run
from lra.contract import (
    CHECKS,
    SMALL,
    BrokenError,
    Check,
    SkippedError,
    Subject,
    all_padding,
    all_parameters_learn,
    batch_permutation,
    bfloat16,
    compiles,
    determinism,
    dropout,
    gpu,
    head_permutation,
    masked_content,
    masked_gradient,
    memory_growth,
    no_mask,
    other_device,
    padding,
    permute_heads,
    plain_form,
    sentence,
    shape_and_type,
    state_round_trip,
    threads,
    training,
    untouched_inputs,
)
from lra.memory import PeakMemory
from models.ema import EMA
from models.encoder import pad_invariant
from models.heads import AttentionShape
from models.linformer import Linformer
from models.softmax import Softmax, softmax_attention


class Sound(Softmax):
    """A backend that keeps the contract, and declares all that it may declare."""

    thread_safe = True


class Shorter(Softmax):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask)[:, : max(1, x.shape[1] - 1)]


class Wider(Softmax):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask).double()


class Maskless(Softmax):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, None)


class Multiplying(Softmax):
    """Multiplies masked values by 0, which gives NaN if they are NaN."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.projections.split(x)
        return self.projections.merge(softmax_attention(q, k, v, mask))


class Leaking(Softmax):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        everything = x.sum()
        return super().forward(x, mask) + (everything - everything.detach())


class Deaf(Softmax):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x.detach(), mask)


class OtherWithMask(Softmax):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask) * (1.0 if mask is None else 1.1)


class Mean(nn.Module):
    pad_invariant = True

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        real = torch.ones_like(x[..., :1]) if mask is None else mask[..., None].to(x)
        return ((x * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)).expand_as(x)


class Pair(Softmax):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask), x


class Length(Softmax):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask) / x.shape[1] ** 0.5


class Timid(Softmax):
    pad_invariant = False


class Mute(nn.Module):
    def __init__(self, shape: AttentionShape) -> None:
        super().__init__()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x


class Numbered(Softmax):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask) + torch.arange(len(x), dtype=x.dtype)[:, None, None]


class RankedHeads(Softmax):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.projections.split(x)
        rank = torch.arange(q.shape[1], dtype=x.dtype)[:, None, None]
        return self.projections.merge(rank * softmax_attention(q, k, v, mask))


class Noisy(Softmax):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask) + 1e-6 * torch.randn_like(x)


class Overwriting(Softmax):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None and not x.requires_grad:
            x.masked_fill_(~mask[..., None], 0.0)
        return super().forward(x, mask)


class Cancelling(Softmax):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return (super().forward(x, mask) + 100) - 100


class AlwaysDropping(Softmax):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.dropout(super().forward(x, mask), self.dropout)


class NeverDropping(Softmax):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.reference(x, mask)


class Unregistered(Softmax):
    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.scale = torch.rand(())

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask) * self.scale


class OnTheCPU(Softmax):
    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.scale = torch.ones(shape.dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask) * self.scale


class IdleParameter(Softmax):
    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.idle = nn.Parameter(torch.zeros(3))


class OtherValues(Softmax):
    def reference(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return 1.001 * super().reference(x, mask)


class OtherGradients(Softmax):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.projections.split(x)
        return self.projections.merge(softmax_attention(q, k.detach(), v, mask))


class Hungry(Softmax):
    memory_growth = 1

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape, fused=False)


class Frugal(Softmax):
    memory_growth = 2


class Breaking(Softmax):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        torch._dynamo.graph_break()
        return super().forward(x, mask)


class Excused(Breaking):
    graph_break = "it asks for a break"


class Groundless(Softmax):
    graph_break = "it was so once"


class OtherGradientsCompiled(Softmax):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.projections.split(x)
        k = k.detach() if torch.compiler.is_compiling() else k
        return self.projections.merge(softmax_attention(q, k, v, mask))


class Untyped(Softmax):
    def __init__(self, shape: AttentionShape, *, window: int = 3) -> None:
        super().__init__(shape)
        self.size = shape.dim + len(window)  # type: ignore[arg-type]  # the mistake


class Keeping(Softmax):
    """Keeps its input on itself while it computes, and lets other threads in meanwhile."""

    thread_safe = True

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        self.given = x
        time.sleep(0.001)
        return super().forward(x, mask) + self.given[:1, :1]


class Dicing(Softmax):
    thread_safe = True

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.dropout(super().forward(x, mask), 0.1, self.training)


class OverTheBatch(Softmax):
    """Averages over the wrong axis, which permuting the batch does not reveal."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask) + super().forward(x, mask).mean(0, keepdim=True)


class Squeezing(Softmax):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask).squeeze(0)


class Nothing(Softmax):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> None:  # type: ignore[override]
        return None


class AsWideAsTheModel(nn.Module):
    pad_invariant = True

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__()
        self.value = nn.Linear(shape.dim, shape.dim)
        self.heads = shape.heads, shape.head_dim

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.value(x).view(*x.shape[:2], *self.heads).flatten(2)


class MasklessInTraining(Softmax):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, None if self.training else mask)


class DicingElsewhere(Softmax):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        output = super().forward(x, mask)
        return output * (1 + np.random.default_rng().random() * self.training)


class Remembering(Softmax):
    """Keeps what it computed from its parameters when it was first asked without gradients."""

    scale: Tensor | None = None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        scale = self.projections.out.weight.sum()
        if not torch.is_grad_enabled():
            self.scale = scale = scale if self.scale is None else self.scale
        return super().forward(x, mask) * scale


class Asking(Softmax):
    """Waits for contents, without a break in the graph."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, None if mask is None else mask.cpu().to(x.device))


class Unplaced(Softmax):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask) * torch.ones(x.shape[1], 1)


class Ending(Softmax):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        raise SystemExit("done")


class StartingAtZero(Softmax):
    """A correct backend whose output projection starts as zeros."""

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        nn.init.zeros_(self.projections.out.weight)


# The check, a backend that it must refuse, and what the reason must contain.
BROKEN: list[tuple[Check, type[nn.Module], str]] = [
    (shape_and_type, Shorter, "shape (3, 1, 16) at N=2, not (3, 2, 16)"),
    (shape_and_type, Wider, "dtype float64 at N=1, not float32"),
    (shape_and_type, Nothing, "a NoneType at N=1, not a tensor"),
    (shape_and_type, AsWideAsTheModel, "RuntimeError: shape '[3, 37, 2, 9]' is invalid"),
    (shape_and_type, Ending, "SystemExit: done"),
    (masked_content, Maskless, "with large numbers under the mask, outputs differ by"),
    (masked_content, Multiplying, "with nan under the mask, outputs differ by nan"),
    (masked_gradient, Multiplying, "with nan under the mask, gradients that are not finite"),
    (masked_gradient, Leaking, "under the mask"),
    (masked_gradient, Deaf, "the gradient of the input is zero"),
    (no_mask, OtherWithMask, "outputs differ by"),
    (all_padding, Mean, "values that are not finite"),
    (padding, Length, "pad_invariant is True, but outputs differ by"),
    (padding, Timid, "pad_invariant is False, but more padding changed nothing"),
    (padding, Mute, "Mute must declare pad_invariant = True or False"),
    (batch_permutation, Numbered, "outputs differ by"),
    (batch_permutation, OverTheBatch, "of a sequence alone, outputs differ by"),
    (batch_permutation, Squeezing, "shape (37, 16) for a batch of one sequence"),
    (head_permutation, RankedHeads, "outputs differ by"),
    (determinism, Noisy, "a second call gives different outputs"),
    (untouched_inputs, Overwriting, "x is overwritten"),
    (bfloat16, Cancelling, "of their norm; at most 3.0% is allowed"),
    (dropout, AlwaysDropping, "in evaluation, outputs with and without it differ by"),
    (dropout, NeverDropping, "with dropout=0.5, outputs in training equal those without it"),
    (training, MasklessInTraining, "with large numbers under the mask, outputs differ by"),
    (training, DicingElsewhere, "outputs differ although the seed is the same"),
    (threads, Keeping, "what is kept on the module?"),
    (threads, Dicing, "it draws from torch's generator"),
    (state_round_trip, Unregistered, "is a random tensor neither a parameter nor a buffer?"),
    (state_round_trip, Remembering, "Is something kept from an earlier call?"),
    (all_parameters_learn, IdleParameter, "no gradient for idle"),
    (plain_form, OtherValues, "outputs at N=1 differ by"),
    (plain_form, OtherGradients, "gradients of x at N=37 differ by"),
    (memory_growth, Hungry, "claims 1, but the power is 1.99: 6.2 MiB at 512"),
    (memory_growth, Frugal, "claims 2, but the power is 1.0"),
    (compiles, Breaking, "Unsupported: Call to `torch._dynamo.graph_break()`"),
    (compiles, Groundless, "graph_break states 'it was so once', but it fits into one graph"),
    (compiles, OtherGradientsCompiled, "gradients of x differ by"),
    (other_device, Asking, "Cannot copy out of meta tensor; no data!"),
    (other_device, Unplaced, "meta"),
    (gpu, OnTheCPU, "device"),
]
MARKS = {OnTheCPU: pytest.mark.gpu, OtherGradientsCompiled: pytest.mark.slow}


@pytest.mark.parametrize(
    ("check", "backend", "reason"),
    [pytest.param(*case, marks=MARKS.get(case[1], ()), id=case[1].__name__) for case in BROKEN],
)
def test_a_broken_backend_fails_the_check_with_the_reason(
    check: Check, backend: type[nn.Module], reason: str
) -> None:
    state, why = run(check, Subject(backend))
    assert state == "FAIL" and reason in why and "\n" not in why


def test_what_the_compiler_refuses_is_found_in_the_users_own_line() -> None:
    _, why = run(compiles, Subject(Breaking))
    first = Breaking.forward.__code__.co_firstlineno
    assert why.endswith(
        (f"(test_contract.py:{first + 1})", "no C++ compiler g++, which torch.compile needs")
    )


def test_a_backend_that_starts_at_zero_keeps_the_contract() -> None:
    for check in (masked_gradient, bfloat16, all_parameters_learn):
        assert run(check, Subject(StartingAtZero)) == ("pass", "")


def test_every_check_has_a_backend_that_fails_it() -> None:
    assert {check for check, _, _ in BROKEN} == set(CHECKS)


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(c, marks=pytest.mark.slow if c is compiles else (), id=c.__name__)
        for c in CHECKS
    ],
)
def test_a_sound_backend_passes_every_check(check: Check) -> None:
    state, why = run(check, Subject(Sound))
    assert state == "pass" or why in ("no CUDA device", "no C++ compiler g++")


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        (head_permutation, "no HeadProjections inside"),
        (dropout, "it has no dropout"),
        (threads, "Mean: no thread_safe = True, or hooks"),
        (plain_form, "it has no reference"),
        (memory_growth, "it has no memory_growth"),
    ],
)
def test_checks_of_what_a_backend_does_not_declare_are_skipped_with_the_reason(
    check: Check, reason: str
) -> None:
    with pytest.raises(SkippedError, match=reason):
        check(Subject(Mean))


def test_a_backend_that_refuses_long_sequences_is_not_measured_on_them() -> None:
    class Short(Softmax):
        def __init__(self, shape: AttentionShape) -> None:
            if shape.max_length > 100:
                raise ValueError("max_length must be at most 100")
            super().__init__(shape)

    with pytest.raises(SkippedError, match="max_length must be at most 100"):
        memory_growth(Subject(Short))


def test_a_backend_that_fails_on_long_sequences_fails_the_check_of_its_memory() -> None:
    class Short(Softmax):
        memory_growth = 1

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            if x.shape[1] > 100:
                raise ValueError("too long")
            return super().forward(x, mask)

    state, why = run(memory_growth, Subject(Short))
    assert state == "FAIL" and why.startswith("ValueError: too long")


def test_what_a_wrapped_backend_fails_to_declare_is_asked_of_it_by_name() -> None:
    with pytest.raises(ValueError, match="Mute must declare pad_invariant"):
        pad_invariant(Subject(partial(EMA, inner=Mute)).build())

    class Around(Mute):
        def __init__(self, shape: AttentionShape) -> None:
            super().__init__(shape)
            self.inner = Softmax(shape)

    with pytest.raises(ValueError, match="Around must declare pad_invariant"):
        pad_invariant(Subject(Around).build())


@pytest.mark.slow
def test_with_a_stated_graph_break_the_check_is_skipped_and_the_pieces_compared() -> None:
    assert run(compiles, Subject(Excused))[1].startswith("it states why not: it asks for a break")


def test_sizes_of_the_subject_reach_the_backend() -> None:
    seen: list[AttentionShape] = []

    def make(shape: AttentionShape) -> nn.Module:
        seen.append(shape)
        return Softmax(shape)

    subject = Subject(make, replace(SMALL, dim=7, heads=5))
    subject.build(dropout=0.25)
    assert seen == [replace(SMALL, dim=7, heads=5, dropout=0.25)]
    assert subject.inputs()[0].shape[-1] == 7


def test_permuting_heads_moves_all_that_belongs_to_a_head() -> None:
    shape = AttentionShape(dim=6, heads=3, head_dim=2, max_length=9)
    first, other = Linformer(shape, rank=2), Linformer(shape, rank=2)
    other.load_state_dict(first.state_dict())
    more = Linformer(replace(shape, heads=4), rank=2)
    permute_heads(other, more, torch.tensor([2, 0, 1]))
    x = torch.randn(1, 9, 6)
    for before, after in zip(first.projections.split(x), other.projections.split(x), strict=True):
        torch.testing.assert_close(after, before[:, [2, 0, 1]])
    assert torch.equal(other.to_keys, first.to_keys[[2, 0, 1]])
    # Another axis of three is none of heads.
    warm, others = (
        nn.ParameterList([torch.arange(3.0 * heads).view(3, heads)]) for heads in (3, 4)
    )
    permute_heads(warm, others, torch.tensor([2, 0, 1]))
    assert warm[0].tolist() == [[2, 0, 1], [5, 3, 4], [8, 6, 7]]
    heads = torch.randn(1, 3, 9, 2)
    torch.testing.assert_close(
        other.projections.merge(heads[:, [2, 0, 1]]), first.projections.merge(heads)
    )


def test_peak_memory_counts_storages_alive_at_once_but_no_views_or_given_tensors() -> None:
    given = torch.zeros(100)
    with PeakMemory(given) as memory:
        first = given + 1  # 400 bytes
        view = first[:50].view(5, 10)
        del first
        second = torch.cat([given, given])  # 800 bytes more
        del view, second
        for _ in range(3):
            given.mul(2)
    assert memory.peak == 1200


def arguments(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[Any, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    captured = capsys.readouterr()
    return stopped.value.code, captured.out, captured.err


def test_the_command_prints_a_line_per_check_and_its_status_shows_a_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, output, _ = arguments(capsys, "softmax", "fused=false", "--fast")
    lines = output.splitlines()
    assert code == 0
    assert [line[6:].split(": ")[0] for line in lines[:-1]] == [sentence(c) for c in CHECKS]
    assert {line[:6] for line in lines[:-1]} == {"pass  ", "skip  "}
    on_gpu = torch.cuda.is_available()
    assert lines[-1].startswith(f"softmax: {18 + on_gpu} passed, 0 failed, ")
    code, output, _ = arguments(capsys, f"{__name__}:Timid", "--fast")
    failed = [line for line in output.splitlines() if line.startswith("FAIL")]
    assert code == 1 and len(failed) == 1 and "more padding changed nothing" in failed[0]
    assert f"{__name__}:Timid: {17 + on_gpu} passed, 1 failed" in output


def test_a_missing_output_is_a_single_finding(capsys: pytest.CaptureFixture[str]) -> None:
    code, output, _ = arguments(capsys, f"{__name__}:Pair", "--fast")
    first, *others, _ = output.splitlines()
    assert code == 1 and first.startswith("FAIL")
    assert all(line.endswith(": there is no output to look at") for line in others)


def test_options_may_follow_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = arguments(capsys, "softmax", "--fast", "fused=maybe")
    assert code == 2 and "attention.options.fused='maybe': must be bool" in error


def test_an_error_while_the_backend_is_built_is_a_finding(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, output, _ = arguments(capsys, f"{__name__}:Untyped", "window=5")
    (line,) = output.splitlines()
    assert code == 1
    assert line.startswith("FAIL  It is built from a shape and its options: TypeError: object of")
    assert "(test_contract.py:" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["softmx"], "attention=softmx: did you mean softmax"),
        (["softmax", "fast=1"], "attention.options.fast: no such option; the options are: fused"),
        (["softmax", "fused"], "fused: options are written key=value"),
        (["no_such_module:Mine"], "there is no module no_such_module"),
        (["wavspa", "inner=softmx"], "attention.inner.name=softmx: no such backend"),
        (["softmax", "inner=linear"], "attention.inner: softmax takes no inner backend"),
        (["mra", "input_shape=[32,32]"], "input_shape=(32, 32): must hold max_length=64 pixels"),
        (
            ["attention=ema", "attention@attention.inner=linformer"]
            + ["attention.inner.options.rank=-5"],
            "rank=-5: must be at least 1",
        ),
        (["attention=ema", "attention.inner.options.rank=4"], "attention.inner.options.rank: no"),
        (["attention=softmax", "attention.inner.options.rank=4"], "softmax takes no inner backend"),
        (["attention=custom"], "attention.path: needs a value, module:Class, such as my_pkg"),
        (["attention=ema", "attention@attention.inner=custom"], "attention.inner.path: needs a"),
        (["task=custom"], "task.path: needs a value, module:Class, such as my_file:MyTask"),
        (["task=listops"], "task=listops: must be a task of your own, such as my_file:MyTask"),
        (
            ["attention=softmax", "model.heads=5"],
            "lra check does not read model.heads: it reads attention",
        ),
        (["softmax", "--max-length", "9"], "--max-length 9: must be at least 56"),
        (["softmax", "--head-dim", "0"], "--head-dim=0: must be at least 1"),
    ],
)
def test_a_wrong_command_line_is_refused_with_an_explanation(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    code, output, error = arguments(capsys, *words)
    assert code == 2 and message in error and not output


def test_help_lists_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    code, output, _ = arguments(capsys, "--help")
    assert code == 0
    assert all(sentence(check) in output for check in CHECKS)


def test_a_failing_check_raises_in_pytest() -> None:
    with pytest.raises(BrokenError):
        masked_content(Subject(Maskless))
