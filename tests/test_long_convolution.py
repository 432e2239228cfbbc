"""Long convolutions, kernels of geometric series and recurrences against their plain forms."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lra.memory import peak_of
from models import long_convolution
from models.geometric_sums import geometric_sums, geometric_sums_reference
from models.linear_recurrence import linear_recurrence, linear_recurrence_reference
from models.long_convolution import convolve, convolve_reference, fft_length
from models.shared_kernel import SharedKernel, kernels_shared


def normal(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gradients(output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    weights = normal(*output.shape, seed=9).to(output.dtype)
    return torch.autograd.grad((output * weights).sum(), inputs, materialize_grads=True)


def test_transform_lengths_are_the_smallest_even_ones_without_large_prime_factors() -> None:
    def good(n: int) -> bool:
        for prime in (2, 3, 5):
            while n % prime == 0:
                n //= prime
        return n == 1

    for least in [*range(1, 700), 8_191, 32_767, 32_769]:
        expected = next(n for n in range(max(2, least), 2 * least + 3) if n % 2 == 0 and good(n))
        assert fft_length(least) == expected, least


@pytest.mark.parametrize("length", [1, 2, 37, 101])
@pytest.mark.parametrize("taps", [1, 7, None])
def test_a_convolution_is_the_sum_over_lags_in_value_and_gradient(
    length: int, taps: int | None
) -> None:
    x = normal(2, length, 3).requires_grad_()
    past = normal(3, min(length, taps or length), seed=2).requires_grad_()
    future = normal(3, min(length - 1, taps or length), seed=3).requires_grad_()
    for after in (None, future):
        inputs = (x, past) if after is None else (x, past, future)
        ours, plain = convolve(x, past, after), convolve_reference(x, past, after)
        torch.testing.assert_close(ours, plain, atol=1e-11, rtol=0)
        for a, b in zip(gradients(ours, *inputs), gradients(plain, *inputs), strict=True):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


def test_a_longer_transform_changes_nothing() -> None:
    x, past, future = normal(2, 37, 3), normal(3, 37, seed=2), normal(3, 36, seed=3)
    short, long = (convolve(x, past, future, n) for n in (fft_length(73), 2 * fft_length(73)))
    torch.testing.assert_close(short, long, atol=1e-12, rtol=0)


@pytest.mark.parametrize("at_once", [1, 1_000, 2**30])
def test_transforming_a_few_sequences_at_a_time_changes_nothing(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_convolution, "AT_ONCE", at_once)
    inputs = [normal(5, 37, 3), normal(3, 37, seed=2), normal(3, 36, seed=3)]
    inputs = [each.requires_grad_() for each in inputs]
    # The memory of `x` is in a different order from its axes.
    inputs[0] = inputs[0].detach().mT.contiguous().mT.requires_grad_()
    ours, plain = convolve(*inputs), convolve_reference(*inputs)
    torch.testing.assert_close(ours, plain, atol=1e-11, rtol=0)
    for a, b in zip(gradients(ours, *inputs), gradients(plain, *inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


def test_a_convolution_is_float32_under_autocast_and_for_bfloat16() -> None:
    x, past = normal(2, 37, 3).float(), normal(3, 37, seed=2).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(convolve(x, past), convolve(x, past).float())
    assert convolve(x.bfloat16(), past).dtype == torch.float32


@pytest.mark.parametrize("length", [1, 2, 3, 37, 1000])
@pytest.mark.parametrize("complex_modes", [True, False])
def test_sums_of_geometric_series_match_those_of_the_table(
    length: int, complex_modes: bool
) -> None:
    kind = torch.complex128 if complex_modes else torch.float64
    weights = normal(2, 3, 5, dtype=kind).requires_grad_()
    decay = -normal(3, 5, seed=2).abs() * 0.01
    log_z = torch.complex(decay, normal(3, 5, seed=3)) if complex_modes else decay
    log_z.requires_grad_()
    ours = geometric_sums(weights, log_z, length)
    plain = geometric_sums_reference(weights, log_z, length)
    assert ours.shape == (2, 3, length) and not ours.is_complex()
    torch.testing.assert_close(ours, plain, atol=1e-10, rtol=1e-10)
    pairs = zip(gradients(ours, weights, log_z), gradients(plain, weights, log_z), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-8)


def test_the_sums_match_those_that_numpy_computes_from_powers() -> None:
    weights, z = normal(1, 2, 3, dtype=torch.complex128), 0.9 * torch.exp(1j * normal(2, 3))
    powers = z.numpy()[:, :, None] ** np.arange(53)
    expected = np.einsum("chn,hnl->chl", weights.numpy(), powers).real
    torch.testing.assert_close(geometric_sums(weights, z.log(), 53), torch.tensor(expected))


def test_sums_of_geometric_series_take_far_less_memory_than_the_table() -> None:
    weights = normal(2, 64, 32, dtype=torch.complex64).requires_grad_()
    log_z = torch.complex(-normal(64, 32).abs(), normal(64, 32, seed=2)).cfloat().requires_grad_()

    def bytes_of(form) -> int:
        return peak_of(lambda: form(weights, log_z, 2048).sum().backward(), torch.device("cpu"))

    assert bytes_of(geometric_sums) < bytes_of(geometric_sums_reference) / 10


@pytest.mark.parametrize("length", [1, 2, 3, 16, 37, 101])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", [torch.complex128, torch.float64])
def test_the_recurrence_in_blocks_equals_the_one_step_by_step(
    length: int, reverse: bool, kind: torch.dtype
) -> None:
    factors = (normal(4, dtype=kind) / 2).requires_grad_()
    inputs = normal(2, length, 4, seed=2, dtype=kind).requires_grad_()
    before = inputs.detach().clone()
    ours = linear_recurrence(factors, inputs, reverse)
    plain = linear_recurrence_reference(factors, inputs, reverse)
    torch.testing.assert_close(ours, plain, atol=1e-11, rtol=1e-11)
    found = [
        gradients(torch.view_as_real(y) if y.is_complex() else y, factors, inputs)
        for y in (ours, plain)
    ]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)
    assert torch.equal(inputs, before)


class Doubled(nn.Module):
    """A layer whose kernel is twice its parameter and that counts how often the kernel is made."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(3, 40))
        self.shared, self.made = SharedKernel(), 0

    def make(self, length: int) -> Tensor:
        self.made += 1
        return 2 * self.weight[:, :length]

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.shared(self.make, x.shape[1]))


def test_micro_batches_share_one_kernel_and_get_the_gradient_of_the_whole_batch() -> None:
    layer = Doubled()
    batches = [normal(2, length, 3, seed=length) for length in (40, 31, 7)]
    sum(layer(x).square().sum() for x in batches).backward()
    expected, layer.weight.grad, layer.made = layer.weight.grad, None, 0
    with kernels_shared(layer):
        for x in batches:
            layer(x).square().sum().backward()
        assert layer.weight.grad is None
    assert layer.made == 1
    torch.testing.assert_close(layer.weight.grad, expected)
    layer(batches[0])
    layer(batches[0])
    assert layer.made == 3


def test_a_later_longer_batch_makes_a_new_kernel() -> None:
    layer = Doubled()
    batches = [normal(2, length, 3, seed=length) for length in (7, 31)]
    sum(layer(x).square().sum() for x in batches).backward()
    expected, layer.weight.grad, layer.made = layer.weight.grad, None, 0
    with kernels_shared(layer):
        for x in batches:
            layer(x).square().sum().backward()
    assert layer.made == 2
    torch.testing.assert_close(layer.weight.grad, expected)


def test_a_failed_update_leaves_no_shared_kernel_behind() -> None:
    layer = Doubled()
    with pytest.raises(RuntimeError, match="out of memory"), kernels_shared(layer):
        layer(normal(2, 7, 3)).sum().backward()
        raise RuntimeError("out of memory")
    assert layer.weight.grad is None
    with torch.no_grad():
        layer.weight.zero_()
    assert not layer(normal(2, 7, 3)).any()
