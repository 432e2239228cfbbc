"""Normalisations of a sequence, all called as `norm(x, mask)`.

Axes: B batch, N length, D model width.
"""

import torch
from torch import Tensor, nn

from models.precision import full_precision


class NoNorm(nn.Module):
    """Leave a sequence unchanged."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return `x`."""
        return x


class LayerNorm(nn.LayerNorm):
    """Normalise each position over its channels (arXiv 1607.06450); the mask has no effect."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise `x` `(B, N, D)`."""
        return super().forward(x)


class ScaleNorm(nn.Module):
    """Divide each position by the root mean square of its channels, and multiply by one scalar.

    This is Mega's form; arXiv 1910.05895 divides by the length of the vector.

    Args:
        epsilon: Added to the mean square.
    """

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise `x` `(B, N, D)`."""
        square = full_precision(x).square().mean(-1, keepdim=True)
        return x * (self.weight * torch.rsqrt(square + self.epsilon)).to(x.dtype)


class BatchNorm(nn.BatchNorm1d):
    """Normalise each channel over batch and length (arXiv 1502.03167), at real positions only.

    Args:
        dim: D.
        epsilon: Added to the variance.
        momentum: Weight of a batch in the running statistics that evaluation uses.
        padding: Take the statistics over padding too, as the released state-space models do;
            masked input then changes real positions in training.
    """

    def __init__(self, dim: int, epsilon: float, momentum: float = 0.1, padding: bool = False):
        super().__init__(dim, epsilon, momentum)
        self.padding = padding

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise `x` `(B, N, D)` using the positions where `mask` `(B, N)` is True."""
        if self.training and mask is not None and not self.padding:
            return self._masked(full_precision(x), mask).to(x.dtype)
        return super().forward(full_precision(x).flatten(0, 1)).view(x.shape).to(x.dtype)

    def _masked(self, x: Tensor, mask: Tensor) -> Tensor:
        hidden = ~mask[..., None]
        count = mask.sum().clamp(min=1)
        mean = x.masked_fill(hidden, 0.0).sum((0, 1)) / count
        centred = (x - mean).masked_fill(hidden, 0.0)
        variance = centred.square().sum((0, 1)) / count
        self._remember(mean, variance * (count / (count - 1).clamp(min=1)))
        return torch.addcmul(self.bias, centred, self.weight * torch.rsqrt(variance + self.eps))

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None and self.num_batches_tracked is not None
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked.add_(1)


Norm = LayerNorm | BatchNorm | ScaleNorm | NoNorm


def build_norm(
    kind: str, dim: int, epsilon: float, *, momentum: float = 0.1, padding: bool = False
) -> Norm:
    """Build a norm by its name.

    Args:
        kind: One of `models.sizes.NORMS`.
        dim: D.
        epsilon: Added to variances.
        momentum: See `BatchNorm`; used by `batch` only.
        padding: See `BatchNorm`; used by `batch` only.
    """
    if kind == "batch":
        return BatchNorm(dim, epsilon, momentum, padding)
    return ScaleNorm(epsilon) if kind == "scale" else LayerNorm(dim, epsilon)
