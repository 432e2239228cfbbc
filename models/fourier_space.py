"""Attention in Fourier space: our own control for learning in a wavelet space.

Zhuang et al. 2023 (arXiv 2210.01989) compare WavSpA with learning in Fourier space without saying
how; this is the construction closest to WavSpA that changes nothing but the transform.

Axes: B batch, N length, D model width, K = N // 2 + 1 frequencies.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from models.heads import AttentionShape, share
from models.precision import full_precision


class FourierSpace(nn.Module):
    """Attend among the Fourier coefficients of a sequence, without a mask.

    The real parts of the K frequencies, followed by the imaginary parts, are the 2 K tokens of a
    single attention, which therefore has the width and the parameters of a plain one. Masked
    positions are zeroed before the transform. The transform is unitary and runs in float32 even
    under autocast, because FFTs of arbitrary length support no shorter type. The layer works under
    `torch.compile` as one graph, in which inductor, with a warning, leaves complex arithmetic to
    the ordinary kernels.

    Args:
        shape: Sizes; the inner attention is built for the same ones, but with length 2 K.
        inner: Builds the attention.
    """

    pad_invariant = False

    @property
    def memory_growth(self) -> float | None:
        """The power of N with which memory grows: as the inner attention declares, if it does."""
        return getattr(self.attention, "memory_growth", None)

    def __init__(
        self, shape: AttentionShape, *, inner: Callable[[AttentionShape], nn.Module]
    ) -> None:
        super().__init__()
        self.attention = inner(replace(shape, max_length=2 * (shape.max_length // 2 + 1)))

    def share_with(self, first: nn.Module) -> None:
        """Let the inner attention share with that of the first layer."""
        assert isinstance(first, FourierSpace)
        share(self.attention, first.attention)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend in the Fourier space of `x` `(B, N, D)`; `mask` `(B, N)` bool or None."""
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0.0)
        spectrum = torch.fft.rfft(full_precision(x), dim=1, norm="ortho")  # (B, K, D)
        tokens = torch.cat([spectrum.real, spectrum.imag], dim=1)  # (B, 2 K, D)
        real, imag = full_precision(self.attention(tokens, None)).chunk(2, dim=1)
        out: Tensor = torch.fft.irfft(torch.complex(real, imag), n=x.shape[1], dim=1, norm="ortho")
        return out

    def reference(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute `forward` with the transform as a product with real matrices."""
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0.0)
        length = x.shape[1]
        position = torch.arange(length, device=x.device)
        frequency = position[: length // 2 + 1, None]
        angles = (frequency * position % length).to(x.dtype) * (2 * torch.pi / length)
        waves = torch.cat([angles.cos(), -angles.sin()]) / length**0.5  # (2 K, N)
        # Every frequency except 0 and N / 2 also stands for its negative.
        twice = torch.where((2 * frequency) % length == 0, 1.0, 2.0).to(x.dtype).repeat(2, 1)
        out: Tensor = (twice * waves).mT @ self.attention(waves @ x, None)
        return out
