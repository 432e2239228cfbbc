"""Lifting transforms: split into even and odd samples, predict one from the other, update.

There are two: the fixed CDF / LeGall 5/3 wavelet, and WavSpA's learned, nonlinear lifting, which is
invertible for any filters. Neighbours wrap around, and a sequence of odd length is extended by a
zero, so a level gives `ceil(N / 2)` coefficients per band. Paper: Zhuang et al. 2023, arXiv
2210.01989; the details follow its released code.

Axes: B batch, N length, C channels, F taps, n coefficients of a band.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.depthwise import correlate, spread, tap_gradient
from models.options import at_least

Step = Callable[[Tensor], Tensor]


def lifting_dec(
    x: Tensor, w_est: Tensor, w_pred: Tensor, level: int, plain: bool = False
) -> list[Tensor]:
    """Decompose a sequence by learned lifting, in time and memory linear in N F.

    With e and o the even and odd samples, a level gives `d = o - silu(corr(e, w_est)) / 2` and
    `s = e + silu(corr(d, w_pred)) / 4`, where `corr` is `circular_correlation`.

    Args:
        x: `(B, N, C)`, float32 or float64, N >= 1.
        w_est: Filters `(F, C)` that predict odd samples from even ones.
        w_pred: Filters `(F, C)` that update even samples from details.
        level: Number of levels, at least 1; each splits the s of the previous level.
        plain: Whether to correlate by `circular_correlation_plain`.

    Returns:
        `[s_level, d_level, ..., d_1]`, each `(B, n, C)`.

    Raises:
        ValueError: `level` is below 1.
    """
    return _decompose(x, level, *_learned_steps(w_est, w_pred, plain))


def lifting_rec(
    coeffs: Sequence[Tensor], w_est: Tensor, w_pred: Tensor, length: int, plain: bool = False
) -> Tensor:
    """Undo `lifting_dec`: exact for every filter, length and level.

    Args:
        coeffs: `[s_level, d_level, ..., d_1]`, each `(B, n, C)`.
        w_est: As given to `lifting_dec`.
        w_pred: As given to `lifting_dec`.
        length: Length N of the sequence that was decomposed (or N + 1 if N is odd).
        plain: As given to `lifting_dec`.

    Returns:
        `(B, length, C)`.

    Raises:
        ValueError: The coefficients do not fit each other or `length`.
    """
    return _reconstruct(coeffs, length, *_learned_steps(w_est, w_pred, plain))


def lift53_dec(x: Tensor, level: int) -> list[Tensor]:
    """Decompose a sequence by 5/3 lifting, which has no parameters.

    A level gives `d[k] = o[k] - (e[k] + e[k + 1]) / 2` and `s[k] = e[k] + (d[k - 1] + d[k]) / 4`.

    Args:
        x: `(B, N, C)`, N >= 1.
        level: Number of levels, at least 1.

    Returns:
        `[s_level, d_level, ..., d_1]`, each `(B, n, C)`.

    Raises:
        ValueError: `level` is below 1.
    """
    return _decompose(x, level, _predict53, _update53)


def lift53_rec(coeffs: Sequence[Tensor], length: int, pad_detail: bool = False) -> Tensor:
    """Undo `lift53_dec`.

    Args:
        coeffs: `[s_level, d_level, ..., d_1]`, each `(B, n, C)`.
        length: Length N of the sequence that was decomposed (or N + 1 if N is odd).
        pad_detail: Whether to extend a detail band by a zero if the approximation is longer, as
            published, which corrupts a few samples, instead of cropping the approximation.

    Returns:
        `(B, length, C)`.

    Raises:
        ValueError: The coefficients do not fit each other or `length`.
    """
    return _reconstruct(coeffs, length, _predict53, _update53, pad_detail)


def lifting_lengths(length: int, level: int) -> list[int]:
    """Return the lengths of the bands, in order, for a sequence of `length`."""
    details = []
    for _ in range(level):
        length = (length + 1) // 2
        details.append(length)
    return [length, *reversed(details)]


def _decompose(x: Tensor, level: int, predict: Step, update: Step) -> list[Tensor]:
    at_least(1, level=level)
    details = []
    for _ in range(level):
        if x.shape[1] % 2:
            x = F.pad(x, (0, 0, 0, 1))
        even, odd = x[:, 0::2], x[:, 1::2]
        detail = odd - predict(even)
        x = even + update(detail)
        details.append(detail)
    return [x, *reversed(details)]


def _reconstruct(
    coeffs: Sequence[Tensor], length: int, predict: Step, update: Step, pad_detail: bool = False
) -> Tensor:
    x, *details = coeffs
    for detail in details:
        excess = x.shape[1] - detail.shape[1]
        if excess not in (0, 1) and not (pad_detail and excess > 0):
            raise ValueError(
                f"a band of {x.shape[1]} coefficients cannot be joined to one of {detail.shape[1]}"
            )
        if pad_detail:
            detail = F.pad(detail, (0, 0, 0, excess))
        even = x[:, : detail.shape[1]] - update(detail)
        odd = detail + predict(even)
        x = torch.stack([even, odd], dim=2).flatten(1, 2)  # (B, 2 n, C)
    if length > x.shape[1] or (length < x.shape[1] - 1 and not pad_detail):
        raise ValueError(f"the coefficients give a length of {x.shape[1]}, not {length}")
    return x[:, :length]


def _predict53(even: Tensor) -> Tensor:
    return (even + even.roll(-1, dims=1)) / 2


def _update53(detail: Tensor) -> Tensor:
    return (detail.roll(1, dims=1) + detail) / 4


def _learned_steps(w_est: Tensor, w_pred: Tensor, plain: bool) -> tuple[Step, Step]:
    correlation = circular_correlation_plain if plain else circular_correlation

    def predict(even: Tensor) -> Tensor:
        return F.silu(correlation(even, w_est)) / 2

    def update(detail: Tensor) -> Tensor:
        return F.silu(correlation(detail, w_pred)) / 4

    return predict, update


def circular_correlation(x: Tensor, taps: Tensor) -> Tensor:
    """Compute `out[k] = sum_m taps[m] x[(k + m) mod n]` in each channel.

    Args:
        x: `(B, n, C)`.
        taps: `(F, C)`; taps beyond the first n are ignored.

    Returns:
        `(B, n, C)`.
    """
    correlated: Tensor = _CircularCorrelation.apply(x, taps[: x.shape[1]])  # type: ignore[no-untyped-call] # torch's stub
    return correlated


class _CircularCorrelation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor) -> Tensor:
        signal = torch.cat([x, x[:, : len(taps) - 1]], dim=1)  # (B, n + F - 1, C)
        ctx.save_for_backward(signal, taps)
        return correlate(signal, taps, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        signal, taps = ctx.saved_tensors
        for_x = for_taps = None
        if ctx.needs_input_grad[0]:
            full, length = spread(gradient, taps, 1), gradient.shape[1]
            for_x = full[:, :length]
            for_x[:, : len(taps) - 1] += full[:, length:]
        if ctx.needs_input_grad[1]:
            for_taps = tap_gradient(signal, gradient, len(taps), 1)
        return for_x, for_taps


def circular_correlation_plain(x: Tensor, taps: Tensor) -> Tensor:
    """Compute `circular_correlation` as a sum of shifted products: the plain form."""
    shifted = [x.roll(-m, dims=1) * taps[m] for m in range(min(len(taps), x.shape[1]))]
    return torch.stack(shifted).sum(0)
