"""The discrete wavelet transform of WavSpA along the length, with one trainable filter per channel.

A level reflects the signal at both ends by F - 2 samples and takes the circular orthogonal
transform of the result, so a band has `ceil(N / 2) + F - 2` coefficients, F / 2 - 1 more than
PyWavelets' `reflect` mode gives. Paper: Zhuang et al. 2023, arXiv 2210.01989; the details follow
its released code. `models/lattice.py` parametrises orthonormal filters, and `models/lifting.py` has
the lifting transforms.

Axes: B batch, N length, C channels, F taps, n coefficients of a band.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.depthwise import correlate, spread, tap_gradient
from models.options import at_least


def wavedec(x: Tensor, dec_lo: Tensor, level: int, channel_reverse: bool = False) -> list[Tensor]:
    """Decompose a sequence into wavelet coefficients, in time and memory linear in N F.

    Args:
        x: `(B, N, C)`, float32 or float64, N >= 1.
        dec_lo: Analysis lowpass filters `(F, C)`, F even, in PyWavelets' tap order.
        level: Number of levels, at least 1; each splits the approximation of the previous one.
        channel_reverse: Take the lowpass of channel c from filter C - 1 - c, as published.

    Returns:
        `[cA_level, cD_level, ..., cD_1]`, each `(B, n, C)`; `band_lengths` gives n.

    Raises:
        ValueError: Filters, signal and level do not fit each other.
    """
    _check(x, dec_lo, level)
    low, high = filter_pair(dec_lo, channel_reverse)
    details = []
    for _ in range(level):
        x, detail = _Analysis.apply(x, low, high)  # type: ignore[no-untyped-call] # torch's stub
        details.append(detail)
    return [x, *reversed(details)]


def waverec(
    coeffs: Sequence[Tensor], dec_lo: Tensor, length: int, channel_reverse: bool = False
) -> Tensor:
    """Reconstruct a sequence from wavelet coefficients; each level is the transpose of analysis.

    Inverts `wavedec` exactly if every filter is orthonormal to its own even shifts and channels
    are not reversed. For free filters, one level acts as the zero-phase filter
    `(|H(w)|^2 + |H(w + pi)|^2) / 2`.

    Args:
        coeffs: `[cA_level, cD_level, ..., cD_1]`, each `(B, n, C)`.
        dec_lo: The analysis filters `(F, C)`.
        length: Length N of the sequence that was decomposed (or N + 1 if N is odd).
        channel_reverse: As given to `wavedec`.

    Returns:
        `(B, length, C)`.

    Raises:
        ValueError: Coefficients, filters and length do not fit each other.
    """
    x, *details = coeffs
    _check(x, dec_lo, len(details))
    low, high = filter_pair(dec_lo, channel_reverse)
    lengths = [detail.shape[1] for detail in details[1:]] + [length]
    for detail, target in zip(details, lengths, strict=True):
        full = 2 * (x.shape[1] - dec_lo.shape[0] + 2)
        if x.shape != detail.shape or target not in (full, full - 1):
            raise ValueError(
                f"coefficients {tuple(x.shape)} and {tuple(detail.shape)} with {dec_lo.shape[0]} "
                f"taps give a length of {full - 1} or {full}, not {target}"
            )
        x = _Synthesis.apply(x, detail, low, high, target)  # type: ignore[no-untyped-call] # torch's stub
    return x


def band_lengths(length: int, num_taps: int, level: int) -> list[int]:
    """Return the lengths of `wavedec`'s bands, in its order, for a sequence of `length`."""
    details = []
    for _ in range(level):
        length = (length + 1) // 2 + num_taps - 2
        details.append(length)
    return [length, *reversed(details)]


def filter_pair(dec_lo: Tensor, channel_reverse: bool = False) -> tuple[Tensor, Tensor]:
    """Derive the low and high sequences that analysis correlates with and synthesis convolves.

    They are PyWavelets' `rec_lo` and `rec_hi` (conjugate quadrature filters); its `dec_lo` and
    `dec_hi` are these read backwards.

    Args:
        dec_lo: `(F, C)`.
        channel_reverse: Reverse the channels of `low`, as published (`jnp.flip` without an axis).

    Returns:
        `low[m] = dec_lo[F - 1 - m]` and `high[m] = (-1)^m dec_lo[m]`, both `(F, C)`.
    """
    signs = dec_lo.new_ones(dec_lo.shape[0], 1)
    signs[1::2] = -1
    return dec_lo.flip((0, 1) if channel_reverse else (0,)), signs * dec_lo


def _check(x: Tensor, dec_lo: Tensor, level: int) -> None:
    at_least(1, level=level)
    if dec_lo.ndim != 2 or dec_lo.shape[0] < 2 or dec_lo.shape[0] % 2:
        raise ValueError(f"dec_lo is {tuple(dec_lo.shape)}; it must be (F, C) with F even")
    if x.ndim != 3 or x.shape[1] < 1 or x.shape[2] != dec_lo.shape[1]:
        raise ValueError(f"x is {tuple(x.shape)}; it must be (B, N, {dec_lo.shape[1]}), N >= 1")


class _Analysis(torch.autograd.Function):
    """One level: `lo[k] = sum_m low[m] xp[(2 k + m) mod M]`, `hi` likewise with `high`.

    `xp` is the reflected signal of length M. Its first F - 2 samples are appended once more, so
    that the circular correlation becomes a plain one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        left, right = _borders(x.shape[1], low.shape[0], x.device)
        signal = torch.cat([x[:, left], x, x[:, right], x[:, left]], dim=1)  # (B, M + F - 2, C)
        ctx.save_for_backward(signal, low, high)
        ctx.length = x.shape[1]
        return correlate(signal, low, 2), correlate(signal, high, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, lo: Tensor, hi: Tensor) -> tuple[Tensor | None, ...]:
        signal, low, high = ctx.saved_tensors
        num_taps, length = low.shape[0], ctx.length
        for_x = for_low = for_high = None
        if ctx.needs_input_grad[0]:
            left, right = _borders(length, num_taps, signal.device)
            full = spread(lo, low, 2).add_(spread(hi, high, 2))
            pad = len(left)
            wrapped = full[:, full.shape[1] - pad :]
            for_x = full[:, pad : pad + length]
            for_x.index_add_(1, left, full[:, :pad] + wrapped)
            for_x.index_add_(1, right, full[:, pad + length : full.shape[1] - pad])
        if ctx.needs_input_grad[1]:
            for_low = tap_gradient(signal, lo, num_taps, 2)
        if ctx.needs_input_grad[2]:
            for_high = tap_gradient(signal, hi, num_taps, 2)
        return for_x, for_low, for_high


class _Synthesis(torch.autograd.Function):
    """One level's transpose: `y[t] = sum_k lo[k] low[(t - 2 k) mod M] + hi[k] high[...]`, cropped.

    What wraps around lands in the first F - 2 samples, which are cropped, so a plain adjoint of the
    correlation is enough. For the same reason, the last F / 2 - 1 coefficients of a band have no
    effect, and their gradient is 0.
    """

    @staticmethod
    def forward(ctx: Any, lo: Tensor, hi: Tensor, low: Tensor, high: Tensor, length: int) -> Tensor:
        ctx.save_for_backward(lo, hi, low, high)
        border = low.shape[0] - 2
        full = spread(lo, low, 2).add_(spread(hi, high, 2))
        return full[:, border : border + length]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y: Tensor) -> tuple[Tensor | None, ...]:
        lo, hi, low, high = ctx.saved_tensors
        num_taps = low.shape[0]
        signal = F.pad(y, (0, 0, num_taps - 2, 2 * lo.shape[1] - y.shape[1]))
        needed = ctx.needs_input_grad
        for_lo = correlate(signal, low, 2) if needed[0] else None
        for_hi = correlate(signal, high, 2) if needed[1] else None
        for_low = tap_gradient(signal, lo, num_taps, 2) if needed[2] else None
        for_high = tap_gradient(signal, hi, num_taps, 2) if needed[3] else None
        return for_lo, for_hi, for_low, for_high, None


def _borders(length: int, num_taps: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the indices that reflection puts left and right of a signal, for an even length."""
    pad = num_taps - 2
    left = _reflected(-pad, 0, length, device)
    return left, _reflected(length, length + pad + length % 2, length, device)


def _reflected(start: int, stop: int, length: int, device: torch.device) -> Tensor:
    """Return the indices of samples `start` to `stop` of a signal reflected again and again."""
    period = max(2 * length - 2, 1)
    # Starts are made positive here: inductor's bounds fail for remainders of negative integers.
    position = (torch.arange(stop - start, device=device) + start % period) % period
    return torch.minimum(position, 2 * length - 2 - position)


def wavedec_plain(
    x: Tensor, dec_lo: Tensor, level: int, channel_reverse: bool = False
) -> list[Tensor]:
    """Compute `wavedec` by summing over gathered windows: the plain form."""
    low, high = filter_pair(dec_lo, channel_reverse)
    details = []
    for _ in range(level):
        left, right = _borders(x.shape[1], len(low), x.device)
        xp = torch.cat([x[:, left], x, x[:, right]], dim=1)
        windows = xp[:, _windows(xp.shape[1], len(low), x.device)]  # (B, M / 2, F, C)
        x, detail = (windows * low).sum(2), (windows * high).sum(2)
        details.append(detail)
    return [x, *reversed(details)]


def waverec_plain(
    coeffs: Sequence[Tensor], dec_lo: Tensor, length: int, channel_reverse: bool = False
) -> Tensor:
    """Compute `waverec` by adding every coefficient's filter where it belongs: the plain form."""
    low, high = filter_pair(dec_lo, channel_reverse)
    x, *details = coeffs
    border = len(low) - 2
    lengths = [detail.shape[1] for detail in details[1:]] + [length]
    for detail, target in zip(details, lengths, strict=True):
        batch, count, channels = detail.shape
        windows = x[:, :, None] * low + detail[:, :, None] * high  # (B, n, F, C)
        places = _windows(2 * count, len(low), x.device).flatten()
        circle = x.new_zeros(batch, 2 * count, channels)
        x = circle.index_add(1, places, windows.flatten(1, 2))[:, border : border + target]
    return x


def _windows(length: int, num_taps: int, device: torch.device) -> Tensor:
    starts = torch.arange(0, length, 2, device=device)
    return (starts[:, None] + torch.arange(num_taps, device=device)) % length  # (M / 2, F)
