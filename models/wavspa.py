"""WavSpA: attention in a learnable wavelet space (Zhuang et al. 2023, arXiv 2210.01989).

A sequence is decomposed into wavelet coefficients along its length, every band goes through an
attention of its own, and a sequence is reconstructed from the results.

Axes: B batch, N length, D model width, F taps, n coefficients of a band.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import pi
from typing import Literal, get_args

import pywt
import torch
from torch import Tensor, nn

from models.heads import AttentionShape, share
from models.lattice import lattice_angles, lattice_filter
from models.lifting import lift53_dec, lift53_rec, lifting_dec, lifting_lengths, lifting_rec
from models.options import at_least, even, one_of
from models.precision import full_precision
from models.wavelet import band_lengths, wavedec, wavedec_plain, waverec, waverec_plain

Wavelet = Literal["ada", "ortho", "fixed", "lift53", "adalift"]
Init = Literal["uniform", "db"]

WAVELETS = get_args(Wavelet)
MAX_DB_TAPS = 76


class WavSpA(nn.Module):
    """Attend within each band of a wavelet decomposition, without masks.

    Masked positions are zeroed before the transform, so their contents never matter; their number
    does, because zeros have coefficients too. The transform runs in float32 even under autocast:
    with bfloat16 taps and coefficients, no filter would reconstruct better than to 0.3 %, and the
    purpose of orthonormal filters is to reconstruct exactly. The layer works under `torch.compile`
    as one graph for each length; a symbolic length fails in some of inductor's bounds (torch 2.13).

    Args:
        shape: Sizes; the attention of a band is built for the same ones, with the band's length.
        inner: Builds the attention of one band; called `level + 1` times.
        wavelet: `ada`: free filters, one per channel, initialised from Daubechies'. `ortho`:
            filters kept orthonormal by a lattice of angles. `fixed`: Daubechies' filters, not
            trained. `lift53`: 5/3 lifting, not trained. `adalift`: lifting with free filters and
            SiLU.
        wlen: Even number of filter taps F; Daubechies' filters are those of order F / 2. Has no
            effect with `lift53`.
        level: Number of decomposition levels.
        init: For `ortho` only: initial angles, `uniform` in [0, 2 pi), as published, or those of
            Daubechies' filter, `db`.
        channel_reverse: Take the lowpass of channel c from filter D - 1 - c, as published; has no
            effect with lifting.

    Raises:
        ValueError: `wavelet` or `init` is unknown, or `wlen` or `level` is out of range.
    """

    pad_invariant = False

    @property
    def memory_growth(self) -> float | None:
        """The power of N with which memory grows: as the inner attention declares, if it does."""
        return getattr(self.bands[0], "memory_growth", None)

    def __init__(
        self,
        shape: AttentionShape,
        *,
        inner: Callable[[AttentionShape], nn.Module],
        wavelet: Wavelet = "ada",
        wlen: int = 16,
        level: int = 1,
        init: Init = "uniform",
        channel_reverse: bool = False,
    ) -> None:
        super().__init__()
        _check(wavelet, wlen, level, init)
        self.transform: FilterBank | LearnedLifting | Lifting53
        if wavelet == "lift53":
            self.transform = Lifting53(level)
        elif wavelet == "adalift":
            self.transform = LearnedLifting(shape.dim, wlen, level)
        else:
            self.transform = FilterBank(shape.dim, wlen, level, wavelet, init, channel_reverse)
        lengths = self.transform.band_lengths(shape.max_length)
        self.bands = nn.ModuleList(inner(replace(shape, max_length=length)) for length in lengths)

    def share_with(self, first: nn.Module) -> None:
        """Let the inner attentions share with those of the first layer."""
        assert isinstance(first, WavSpA)
        for own, other in zip(self.bands, first.bands, strict=True):
            share(own, other)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend in the wavelet space of `x` `(B, N, D)`; `mask` `(B, N)` bool or None."""
        return self._attend(x, mask, plain=False)

    def reference(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute `forward` with the plain form of the transform."""
        return self._attend(x, mask, plain=True)

    def _attend(self, x: Tensor, mask: Tensor | None, plain: bool) -> Tensor:
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0.0)
        filters = self.transform.filters()
        coeffs = self.transform.decompose(full_precision(x), *filters, plain=plain)
        attended = [
            full_precision(attend(c, None)) for attend, c in zip(self.bands, coeffs, strict=True)
        ]
        return self.transform.reconstruct(attended, x.shape[1], *filters, plain=plain)


class FilterBank(nn.Module):
    """The discrete wavelet transform with one filter per channel.

    Its state is `dec_lo` `(F, D)`, trained (`ada`) or not (`fixed`), or `thetas` `(F / 2, D)`.
    """

    def __init__(
        self, dim: int, wlen: int, level: int, wavelet: Wavelet, init: Init, channel_reverse: bool
    ) -> None:
        super().__init__()
        self.wlen, self.level, self.channel_reverse = wlen, level, channel_reverse
        self.orthogonal = wavelet == "ortho"
        if wavelet == "ada":
            self.dec_lo = nn.Parameter(daubechies(wlen, dim))
        elif wavelet == "fixed":
            self.register_buffer("dec_lo", daubechies(wlen, dim))
        elif init == "db":
            angles = lattice_angles(daubechies(wlen, dim, torch.float64))
            self.thetas = nn.Parameter(angles.to(torch.get_default_dtype()))
        else:
            self.thetas = nn.Parameter(torch.rand(wlen // 2, dim) * 2 * pi)

    def filters(self) -> tuple[Tensor, ...]:
        """Return the analysis lowpass filters `(F, D)` in a tuple of one."""
        return (lattice_filter(self.thetas) if self.orthogonal else self.dec_lo,)

    def band_lengths(self, length: int) -> list[int]:
        """Return the bands' lengths for a sequence of `length`."""
        return band_lengths(length, self.wlen, self.level)

    def decompose(self, x: Tensor, dec_lo: Tensor, *, plain: bool = False) -> list[Tensor]:
        """Decompose `x` `(B, N, D)` into bands `(B, n, D)`, the approximation first."""
        transform = wavedec_plain if plain else wavedec
        return transform(x, dec_lo, self.level, self.channel_reverse)

    def reconstruct(
        self, coeffs: Sequence[Tensor], length: int, dec_lo: Tensor, *, plain: bool = False
    ) -> Tensor:
        """Reconstruct a sequence `(B, length, D)` from bands `(B, n, D)`."""
        transform = waverec_plain if plain else waverec
        return transform(coeffs, dec_lo, length, self.channel_reverse)


class LearnedLifting(nn.Module):
    """Lifting with trained filters `w_est` and `w_pred`, each `(F, D)`, and SiLU."""

    def __init__(self, dim: int, wlen: int, level: int) -> None:
        super().__init__()
        self.level = level
        self.w_est = nn.Parameter(0.02 * torch.randn(wlen, dim))
        self.w_pred = nn.Parameter(0.02 * torch.randn(wlen, dim))

    def filters(self) -> tuple[Tensor, ...]:
        """Return `w_est` and `w_pred`."""
        return self.w_est, self.w_pred

    def band_lengths(self, length: int) -> list[int]:
        """Return the bands' lengths for a sequence of `length`."""
        return lifting_lengths(length, self.level)

    def decompose(
        self, x: Tensor, w_est: Tensor, w_pred: Tensor, *, plain: bool = False
    ) -> list[Tensor]:
        """Decompose `x` `(B, N, D)` into bands `(B, n, D)`, the approximation first."""
        return lifting_dec(x, w_est, w_pred, self.level, plain)

    def reconstruct(
        self,
        coeffs: Sequence[Tensor],
        length: int,
        w_est: Tensor,
        w_pred: Tensor,
        *,
        plain: bool = False,
    ) -> Tensor:
        """Reconstruct a sequence `(B, length, D)` from bands `(B, n, D)`."""
        return lifting_rec(coeffs, w_est, w_pred, length, plain)


class Lifting53(nn.Module):
    """The 5/3 lifting transform, which has no filters to train and is its own plain form."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self.level = level

    def filters(self) -> tuple[Tensor, ...]:
        """Return nothing."""
        return ()

    def band_lengths(self, length: int) -> list[int]:
        """Return the bands' lengths for a sequence of `length`."""
        return lifting_lengths(length, self.level)

    def decompose(self, x: Tensor, *, plain: bool = False) -> list[Tensor]:
        """Decompose `x` `(B, N, D)` into bands `(B, n, D)`, the approximation first."""
        return lift53_dec(x, self.level)

    def reconstruct(self, coeffs: Sequence[Tensor], length: int, *, plain: bool = False) -> Tensor:
        """Reconstruct a sequence `(B, length, D)` from bands `(B, n, D)`."""
        return lift53_rec(coeffs, length)


def daubechies(wlen: int, channels: int, dtype: torch.dtype | None = None) -> Tensor:
    """Repeat Daubechies' analysis lowpass filter of `wlen` taps for each channel: `(F, C)`."""
    taps = pywt.Wavelet(f"db{wlen // 2}").dec_lo
    return torch.tensor(taps, dtype=dtype)[:, None].repeat(1, channels)


def _check(wavelet: str, wlen: int, level: int, init: str) -> None:
    one_of(WAVELETS, wavelet=wavelet)
    one_of(get_args(Init), init=init)
    even(wlen=wlen)
    at_least(1, level=level)
    daubechies_needed = wavelet in ("ada", "fixed") or (wavelet == "ortho" and init == "db")
    if daubechies_needed and wlen > MAX_DB_TAPS:
        raise ValueError(
            f"wlen={wlen}: must be at most {MAX_DB_TAPS}, because wavelet={wavelet} starts from"
            f" Daubechies' filter of order wlen / 2, which is known up to {MAX_DB_TAPS // 2}"
        )
