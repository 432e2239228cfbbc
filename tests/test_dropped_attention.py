"""Softmax attention with dropped weights: the compiled kernel against materialised weights."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.dropout import draw_seed
from models.dropped_attention import dropped_attention, is_supported, kept_weights
from models.heads import AttentionShape
from models.linformer import Linformer
from models.softmax import Softmax, softmax_attention


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def inputs(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, dtype=dtype, generator=generator).requires_grad_() for _ in range(3)]


def with_gradients(output: Tensor, qkv: list[Tensor]) -> list[Tensor]:
    """Return an output and its gradients, for an incoming gradient that the shape determines."""
    generator = torch.Generator().manual_seed(9)
    towards = torch.randn(output.shape, dtype=torch.float64, generator=generator)
    return [output, *torch.autograd.grad(output, qkv, towards.to(output.dtype))]


def both(qkv: list[Tensor], mask: Tensor | None, p: float) -> tuple[list[Tensor], list[Tensor]]:
    """Return values and gradients of the kernel, and of the plain form in float64 with its mask."""
    torch.manual_seed(1)
    seed = draw_seed()
    torch.manual_seed(1)
    got = with_gradients(dropped_attention(*qkv, mask, p), qkv)
    exact = [x.detach().double().requires_grad_() for x in qkv]
    batch, heads, length, _ = exact[0].shape
    kept = kept_weights(seed, batch, heads, length, length, p)
    return got, with_gradients(softmax_attention(*exact, mask, p, kept), exact)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (2, 3, 33, 5), (1, 2, 64, 32), (3, 1, 131, 40)])
def test_values_and_gradients_are_those_of_materialised_weights(
    size, masked, dtype, tolerance
) -> None:
    mask = None
    if masked:
        mask = torch.rand(size[0], size[2], generator=torch.Generator().manual_seed(3)) > 0.4
        mask[-1] = False
    got, want = both(inputs(*size, dtype=dtype), mask, 0.3)
    for x, plain in zip(got, want, strict=True):
        assert x.dtype == dtype
        torch.testing.assert_close(x.double(), plain, rtol=0, atol=tolerance)


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9])
def test_large_logits_and_any_rate_are_exact_too(p: float) -> None:
    q, k, v = inputs(1, 1, 100, 16, dtype=torch.float64)
    with torch.no_grad():
        q *= 40
    for x, plain in zip(*both([q, k, v], None, p), strict=True):
        torch.testing.assert_close(x, plain, rtol=1e-10, atol=1e-10)


def test_heads_with_any_strides_are_read_correctly() -> None:
    x = torch.randn(2, 70, 3, 4, 8)
    views = [t.transpose(1, 2) for t in x.unbind(2)]
    torch.manual_seed(0)
    got = dropped_attention(*views, None, 0.2)
    torch.manual_seed(0)
    assert torch.equal(got, dropped_attention(*(t.contiguous() for t in views), None, 0.2))


def test_one_thread_and_two_give_the_same_bits(threads) -> None:
    qkv = inputs(2, 3, 800, 32)
    results = []
    for number in (1, 2, 2, 1):
        torch.set_num_threads(number)
        torch.manual_seed(0)
        results.append(with_gradients(dropped_attention(*qkv, None, 0.1), qkv))
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_rounded(dtype) -> None:
    qkv = [x.detach().to(dtype).requires_grad_() for x in inputs(1, 2, 90, 16)]
    got, want = both(qkv, None, 0.25)
    for x, plain in zip(got, want, strict=True):
        assert x.dtype == dtype
        torch.testing.assert_close(x.double(), plain, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_rate_and_mean_of_the_weights_are_right_and_heads_are_independent() -> None:
    # Uniform weights of one-hot values show the mask itself.
    n, p = 256, 0.1
    q = torch.zeros(4, 2, n, n)
    torch.manual_seed(0)
    weights = n * (1 - p) * dropped_attention(q, q, torch.eye(n).expand_as(q), None, p)
    kept = weights.round().double()
    torch.testing.assert_close(weights, kept.float(), rtol=0, atol=1e-4)
    deviation = (p * (1 - p)) ** 0.5
    assert abs(kept.mean() - (1 - p)) < 4 * deviation * kept.numel() ** -0.5
    # Every query and every key.
    for axis in (-1, -2):
        assert (kept.mean(axis) - (1 - p)).abs().max() < 5.5 * deviation * n**-0.5
    rows = ((kept - (1 - p)) / deviation).flatten(0, 1)
    pairs = torch.corrcoef(rows.flatten(1)) - torch.eye(8)
    assert pairs.abs().max() < 5 / n
    # Neighbours along both axes, and a diagonal.
    for there, shifted in (
        (rows[:, :, 1:], rows[:, :, :-1]),
        (rows[:, 1:], rows[:, :-1]),
        (rows[:, 1:, 1:], rows[:, :-1, :-1]),
        (rows[:, :, 16:], rows[:, :, :-16]),
    ):
        assert abs((there * shifted).mean()) < 4.5 * there.numel() ** -0.5


def test_restoring_the_state_of_the_generator_gives_the_same_mask() -> None:
    qkv = inputs(1, 1, 40, 8)
    state = torch.get_rng_state()
    first, second = (dropped_attention(*qkv, None, 0.5) for _ in range(2))
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(dropped_attention(*qkv, None, 0.5), first)


def test_the_mask_is_the_same_when_recomputed_under_autocast() -> None:
    attention = Softmax(AttentionShape(dim=12, heads=2, head_dim=8, max_length=64, dropout=0.4))
    x = torch.randn(2, 50, 12, requires_grad=True)

    def gradient(recompute: bool) -> Tensor:
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16):
            y = checkpoint(attention, x, use_reentrant=False) if recompute else attention(x)
        return torch.autograd.grad(y.float().square().sum(), x)[0]

    assert torch.equal(gradient(False), gradient(True))


def test_content_under_the_mask_has_no_effect_and_gets_no_gradient() -> None:
    q, k, v = inputs(2, 2, 70, 8)
    mask = torch.arange(70) < torch.tensor([[30], [65]])
    padding = ~mask[:, None, :, None]
    torch.manual_seed(0)
    want = dropped_attention(q, k, v, mask, 0.3)
    torch.manual_seed(0)
    wild = [x.detach().masked_fill(padding, float("nan")) for x in (k, v)]
    assert torch.equal(dropped_attention(q, *wild, mask, 0.3), want)
    for grad in torch.autograd.grad(want.sum(), (k, v)):
        assert not grad.masked_select(padding).any()
        assert grad.isfinite().all()


def test_inputs_that_are_not_finite_show_in_the_output() -> None:
    q, k, v = inputs(1, 1, 20, 8)
    k.data[0, 0, 3, 2] = float("nan")
    assert dropped_attention(q, k, v, None, 0.1).isnan().all()


def test_second_derivatives_are_refused() -> None:
    q, k, v = inputs(1, 1, 8, 4)
    with pytest.raises(NotImplementedError, match="first derivatives only; use fused=False"):
        torch.autograd.grad(dropped_attention(q, k, v, None, 0.5).sum(), q, create_graph=True)


def test_softmax_uses_the_kernel_only_in_training_on_the_cpu_with_dropout(monkeypatch) -> None:
    taken = []

    def kernel(*arguments: object) -> Tensor:
        taken.append(arguments[-1])
        return dropped_attention(*arguments)

    monkeypatch.setattr("models.softmax.dropped_attention", kernel)
    shape = AttentionShape(dim=8, heads=2, head_dim=4, max_length=16, dropout=0.5)
    x = torch.randn(1, 9, 8)
    attention = Softmax(shape)
    attention.eval()(x)
    Softmax(AttentionShape(dim=8, heads=2, head_dim=4, max_length=16))(x)
    Softmax(shape, fused=False)(x)
    assert not taken
    attention.train()(x)
    assert taken == [0.5]
    q = torch.randn(1, 1, 4, 4)
    assert is_supported(q, 0.5)
    assert not is_supported(q.to("meta"), 0.5)
    assert not is_supported(q, 0.0)
    assert not is_supported(q.to(torch.complex64), 0.5)
    with torch._subclasses.FakeTensorMode():
        assert not is_supported(torch.randn(1, 1, 4, 4), 0.5)


def test_fewer_keys_than_queries_give_the_result_of_materialised_weights() -> None:
    q, k, v = inputs(2, 2, 90, 8, dtype=torch.float64)
    k, v = (x.detach()[:, :, :21].requires_grad_() for x in (k, v))
    torch.manual_seed(1)
    seed = draw_seed()
    torch.manual_seed(1)
    got = with_gradients(dropped_attention(q, k, v, None, 0.3), [q, k, v])
    kept = kept_weights(seed, 2, 2, 90, 21, 0.3)
    weights = (q @ k.mT / 8**0.5).softmax(-1).masked_fill(~kept, 0.0) / 0.7
    want = with_gradients(weights @ v, [q, k, v])
    for x, plain in zip(got, want, strict=True):
        torch.testing.assert_close(x, plain, rtol=0, atol=1e-13)


def test_linformer_drops_weights_with_the_kernel(monkeypatch) -> None:
    shape = AttentionShape(dim=8, heads=2, head_dim=4, max_length=16, dropout=0.5)
    attention, x = Linformer(shape, rank=5), torch.randn(1, 16, 8)
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)
    assert attention(x).isfinite().all()


def test_memory_does_not_grow_with_the_square_of_n() -> None:
    code = """
import resource, torch
from models.dropped_attention import dropped_attention
def step(n):
    qkv = [torch.randn(1, 2, n, 16, requires_grad=True) for _ in range(3)]
    dropped_attention(*qkv, None, .1).sum().backward()
step(64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(8192)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # KiB; one head's weights alone would take 256 MiB.
    assert int(done.stdout) < 64 * 1024


@pytest.mark.slow
def test_torch_compile_uses_torchs_own_form_in_one_graph() -> None:
    shape = AttentionShape(dim=8, heads=2, head_dim=4, max_length=16, dropout=0.5)
    compiled = torch.compile(Softmax(shape), fullgraph=True, backend="eager")
    assert compiled(torch.randn(1, 9, 8)).isfinite().all()
