"""Mega's multi-dimensional damped exponential moving average (arXiv 2209.10655, equations 5 to 7).

Axes: B batch, L length, D channels, N states of a channel, C directions, K taps of the kernel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.geometric_sums import geometric_sums
from models.linear_recurrence import linear_recurrence_reference
from models.long_convolution import convolve
from models.precision import full_precision
from models.shared_kernel import SharedKernel


class MovingAverage(nn.Module):
    """Compute silu(K * x + omega x), with a kernel that is a sum of N decaying exponentials.

    With p = sigmoid(delta) and q = 1 - p sigmoid(alpha), K[t] = sum_n p beta gamma q^t / sqrt(N).
    The directions share nothing, and both see the present, as published. Masked positions enter as
    zeros. Everything is computed in float32 regardless of autocast.

    Args:
        dim: Number of channels D.
        states: Number of exponentials N per channel and direction.
        truncation: Longest lag that is seen, plus one; None for all lags.
        bidirectional: Whether a position also sees later ones.
    """

    def __init__(self, dim: int, *, states: int, truncation: int | None, bidirectional: bool):
        super().__init__()
        self.truncation = truncation
        shape = (2 if bidirectional else 1, dim, states)
        self.delta = nn.Parameter(0.2 * torch.randn(shape))
        self.alpha = nn.Parameter(0.2 * torch.randn(shape))
        # Alternating signs, which the authors found more stable.
        self.beta = nn.Parameter(0.02 * torch.randn(shape) + (-1) ** torch.arange(states))
        self.gamma = nn.Parameter(torch.randn(shape))
        self.omega = nn.Parameter(torch.randn(dim))
        self.shared = SharedKernel()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Average `x` `(B, L, D)`; `mask` `(B, L)` bool or None."""
        x = full_precision(x if mask is None else x.masked_fill(~mask[..., None], 0.0))
        past, *future = self.shared(self.kernels, self._taps(x.shape[1])).unbind(0)
        if future:
            # Lag 0 of both kernels is the present.
            past = torch.cat([past[:, :1] + future[0][:, :1], past[:, 1:]], 1)
        y = convolve(x, past, future[0][:, 1:] if future else None)
        return F.silu(y + self.omega * x)

    def kernels(self, length: int) -> Tensor:
        """Compute the kernels `(C, D, length)`, from lag 0 on."""
        weights, log_q = self._series()
        sums = geometric_sums(weights.flatten(0, 1)[None], log_q.flatten(0, 1), length)
        return sums.view(*weights.shape[:2], length)

    def _series(self) -> tuple[Tensor, Tensor]:
        p = torch.sigmoid(self.delta)
        weights = p * self.beta * self.gamma * self.beta.shape[-1] ** -0.5
        return weights, torch.log1p(-p * torch.sigmoid(self.alpha))

    def _taps(self, length: int) -> int:
        return length if self.truncation is None else min(length, self.truncation)

    def reference(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute `forward` as a recurrence, step by step."""
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0.0)
        weights, log_q = self._series()
        total, length = self.omega * x, x.shape[1]
        for direction, (weight, q) in enumerate(zip(weights, log_q.exp(), strict=True)):
            inputs = weight * x[..., None]  # (B, L, D, N)
            if (taps := self._taps(length)) < length:
                # Subtract again what has left the window, with the decay it has by then.
                ahead = (0, 0, 0, 0, 0, taps) if direction else (0, 0, 0, 0, taps, 0)
                shifted = F.pad(inputs, ahead)
                shifted = shifted[:, taps:] if direction else shifted[:, :length]
                inputs = inputs - q**taps * shifted
            states = linear_recurrence_reference(q, inputs, reverse=direction > 0)
            total = total + states.sum(-1)
        return F.silu(total)
