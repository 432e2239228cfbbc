"""FFT convolution of a sequence with kernels as long as itself, one per channel.

Axes: B batch, L length, D channels, K taps of a kernel.
"""

from collections.abc import Iterable
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.precision import full_precision

# Number of values that are transformed at once on a CPU.
AT_ONCE = 2**19


def fft_length(least: int) -> int:
    """Return the smallest even 2^a 3^b 5^c >= `least`, because FFTs of large primes are slow."""
    best = 2
    while best < least:
        best *= 2
    five = 1
    while five < best:
        three = five
        while three < best:
            candidate = 2 * three
            while candidate < least:
                candidate *= 2
            best = min(best, candidate)
            three *= 3
        five *= 5
    return best


def convolve(x: Tensor, past: Tensor, future: Tensor | None = None, length: int = 0) -> Tensor:
    """Compute `y[t] = sum_i past[i] x[t - i] + sum_i future[i] x[t + 1 + i]` in each channel.

    It runs in float32, or in float64 if `x` is float64. Autocast has no effect on it, because the
    sums cancel to far below what bfloat16 resolves.

    Args:
        x: `(B, L, D)`.
        past: Kernel `(D, K)` for the lags 0 to K - 1; K is at most L.
        future: The same for later positions, from lag 1 on; None for a causal convolution.
        length: Length of the transform; 0 takes the shortest fast one. Longer ones change nothing.

    Returns:
        `(B, L, D)`, in the dtype of the computation.
    """
    if future is None:
        future = past[:, :0]
    furthest = max(past.shape[1] - 1, future.shape[1])
    length = length or fft_length(x.shape[1] + furthest)
    # torch leaves Function.apply untyped.
    convolved: Tensor = _Convolution.apply(  # type: ignore[no-untyped-call]
        full_precision(x), full_precision(past), full_precision(future), length
    )
    return convolved


class _Convolution(torch.autograd.Function):
    """The convolution with its gradients, which are correlations.

    With autograd, the gradient of a real transform would be a complex one, which is twice the work.
    The spectrum of the input is as large as four inputs, so it is recomputed instead of kept. On a
    CPU, a few sequences are transformed at a time, which fit its caches.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, past: Tensor, future: Tensor, length: int) -> Tensor:
        gap = past.new_zeros(len(past), length - past.shape[1] - future.shape[1])
        # Negative lags come last, because the transform is circular.
        kernel = torch.cat([past, gap, future.flip(1)], 1)
        spectrum = torch.fft.rfft(kernel)  # (D, length / 2 + 1)
        del gap, kernel
        output = torch.empty_like(x, memory_format=torch.contiguous_format)
        for each, out in zip(_few(x, length), _few(output, length), strict=True):
            _to_sequence(_spectrum(each, length).mul_(spectrum), length, out)
        # The backward pass needs the conjugate, and neither pass needs both.
        ctx.save_for_backward(x, spectrum.conj_physical_())
        ctx.length, ctx.taps = length, (past.shape[1], future.shape[1])
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, conjugate = ctx.saved_tensors
        dx = past = future = total = None
        outs: Iterable[Tensor | None] = repeat(None)
        if ctx.needs_input_grad[0]:
            dx = torch.empty_like(x, memory_format=torch.contiguous_format)
            outs = _few(dx, ctx.length)
        pairs = zip(_few(gradients[0], ctx.length), _few(x, ctx.length), strict=True)
        for (given, each), out in zip(pairs, outs, strict=False):
            gradient = _spectrum(given, ctx.length)
            if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
                product = _spectrum(each, ctx.length).conj_physical_().mul_(gradient)
                part = product[0] if len(product) == 1 else product.sum(0)
                total = part if total is None else total.add_(part)
                del product, part
            if out is not None:
                _to_sequence(gradient.mul_(conjugate), ctx.length, out)
        if total is not None:
            taps = torch.fft.irfft(total, ctx.length)  # (D, length)
            past = taps[:, : ctx.taps[0]]
            future = taps[:, ctx.length - ctx.taps[1] :].flip(1)
        return dx, past, future, None


def _few(x: Tensor, length: int) -> tuple[Tensor, ...]:
    """Split `x` `(B, L, D)` into groups of sequences that are transformed at once, to `length`."""
    rows = AT_ONCE // (length * x.shape[-1]) if x.device.type == "cpu" else len(x)
    few: tuple[Tensor, ...] = x.split(max(1, rows))  # type: ignore[no-untyped-call]  # torch's
    return few


def _spectrum(x: Tensor, length: int) -> Tensor:
    # The transform is several times as fast if memory is contiguous along the length.
    spectrum: Tensor = torch.fft.rfft(x.mT.contiguous(), length)
    return spectrum  # (B, D, length / 2 + 1)


def _to_sequence(spectrum: Tensor, transformed: int, out: Tensor) -> None:
    """Write the sequences `(B, L, D)` that belong to spectra to `out`."""
    out.copy_(torch.fft.irfft(spectrum, transformed)[..., : out.shape[1]].mT)


def convolve_reference(x: Tensor, past: Tensor, future: Tensor | None = None) -> Tensor:
    """Compute `convolve` lag by lag: the plain form."""
    length = x.shape[1]
    total = torch.zeros_like(x)
    for lag in range(past.shape[1]):
        total = total + past[:, lag] * F.pad(x, (0, 0, lag, 0))[:, :length]
    for lag in range(0 if future is None else min(future.shape[1], length - 1)):
        assert future is not None
        total = total + future[:, lag] * F.pad(x, (0, 0, 0, lag + 1))[:, lag + 1 :]
    return total
