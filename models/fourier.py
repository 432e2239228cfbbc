"""FNet mixing: the real part of a two-dimensional Fourier transform (arXiv 2105.03824, eq. 3).

Axes: B batch, N length, D model width.

    y[n, d] = sum_ab x[a, b] cos(2 pi (n a / N + d b / D))

The map is linear with a symmetric matrix, so its backward pass is the same map. It also equals
its own mirror image, y[-n, -d] = y[n, d], so half of the transform is computed and half copied.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from models.heads import AttentionShape
from models.options import one_of
from models.precision import full_precision, without_autocast

Norm = Literal["backward", "ortho"]
Method = Literal["fft", "matrix"]


def fourier_mixing_reference(x: Tensor, norm: Norm = "backward") -> Tensor:
    """Mix `x` `(B, N, D)` with the whole complex transform under autograd: the plain form."""
    mixed: Tensor = torch.fft.fft2(x, norm=norm).real
    return mixed


def _mix_by_fft(x: Tensor) -> Tensor:
    """Mix `x` `(B, N, D)`: columns 0 .. D // 2 by FFT, the others by symmetry."""
    width = x.shape[-1]
    mixed = torch.empty_like(x)
    known, missing = mixed[..., : width // 2 + 1], mixed[..., width // 2 + 1 :]
    known.copy_(torch.fft.rfft2(x).real)
    # Row n of the missing columns is row -n of the known ones: row 0 stays, the rest are reversed.
    # Reading them from the copy is faster than from the complex transform, where only every other
    # float is one of them.
    mirrored = known[..., 1 : width - width // 2]
    missing[..., 0, :] = mirrored[..., 0, :].flip(-1)
    missing[..., 1:, :] = mirrored[..., 1:, :].flip(-1, -2)
    return mixed


def _mix_by_matrix(x: Tensor) -> Tensor:
    """Transform the length by FFT and the width by two products with `(D, D)` real matrices."""
    length, width = x.shape[-2:]
    steps = torch.arange(width, device=x.device)
    # The product is reduced modulo D while it is still an integer, which keeps the angle exact.
    angles = (steps[:, None] * steps % width).to(x.dtype) * (2 * torch.pi / width)
    half = torch.fft.rfft(x, dim=-2)  # (B, N // 2 + 1, D)
    even, odd = half.real @ angles.cos(), half.imag @ angles.sin()
    mirrored = (even - odd)[..., 1 : length - length // 2, :].flip(-2)
    return torch.cat([even + odd, mirrored], -2)


class _FourierMixing(torch.autograd.Function):
    """The symmetric map, which is its own gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Norm, method: Method) -> Tensor:
        ctx.norm, ctx.method = norm, method
        mixed = _mix_by_fft(x) if method == "fft" else _mix_by_matrix(x)
        return mixed.mul_((x.shape[-2] * x.shape[-1]) ** -0.5) if norm == "ortho" else mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return fourier_mixing(gradients[0], ctx.norm, ctx.method), None, None


def fourier_mixing(x: Tensor, norm: Norm = "backward", method: Method = "fft") -> Tensor:
    """Mix `x` over length and width by the real part of its two-dimensional transform.

    Args:
        x: `(B, N, D)` float32 or float64, any N and D.
        norm: `backward` scales nothing, as published; `ortho` divides by sqrt(N D).
        method: `fft` over both axes, or `matrix`: the width by a matrix product.

    Returns:
        `(B, N, D)`, equation 3 of arXiv 2105.03824.
    """
    # torch leaves Function.apply untyped.
    mixed: Tensor = _FourierMixing.apply(x, norm, method)  # type: ignore[no-untyped-call]
    return mixed


class Fourier(nn.Module):
    """FNet's token mixing; it has neither parameters nor heads.

    The transform runs in float32 under autocast, since FFTs have no bf16 form. Under
    `torch.compile` the graph stays whole, but the complex operators run uncompiled.

    Args:
        shape: Sizes, which do not matter here.
        norm: `backward` (as published) or `ortho`.
        method: `fft`, or `matrix` for the width as a matrix product.

    Raises:
        ValueError: An option is not one of these.
    """

    # The transform sees the whole padded length.
    pad_invariant = False
    memory_growth = 1

    def __init__(
        self, shape: AttentionShape, *, norm: Norm = "backward", method: Method = "fft"
    ) -> None:
        super().__init__()
        one_of(get_args(Norm), norm=norm)
        one_of(get_args(Method), method=method)
        self.norm: Norm = norm
        self.method: Method = method

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix `x` `(B, N, D)`, zeroed where `mask` `(B, N)` is False."""
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0.0)
        wide = full_precision(x)
        # Autocast would round the products of `matrix`, and their gradient would have no transform.
        with without_autocast(x):
            return fourier_mixing(wide, self.norm, self.method).to(x.dtype)

    def reference(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute `forward` in its plain form."""
        x = x if mask is None else x.masked_fill(~mask[..., None], 0.0)
        return fourier_mixing_reference(x, self.norm)
