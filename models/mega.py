"""Mega, single-head gated attention behind a moving average (Ma et al. 2023, arXiv 2209.10655).

This is the whole gated unit, without the residual, which the encoder adds. Conventions follow the
released `MovingAverageGatedAttention`.

Axes: B batch, N length, D model width, V width of values, Z width of queries and keys, K chunks, T
tokens per chunk.
"""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.dropout import Dropout
from models.heads import AttentionShape, masked_softmax
from models.moving_average import MovingAverage
from models.norms import BatchNorm, build_norm
from models.options import at_least, one_of, within
from models.precision import full_precision

Weighting = Literal["softmax", "laplace"]
Norm = Literal["none", "layer", "batch", "scale"]

# Where the Laplace function is steepest, and how steep it is: it approximates squared ReLU.
LAPLACE_MEAN, LAPLACE_STD = 0.707107, 0.282095


class Mega(nn.Module):
    """Attend with queries and keys from a moving average, and gate the result.

    With x' = norm(x) and M = EMA(x'), the values are silu(W x'), and the gates phi and R, the
    queries, the keys and a candidate H are computed from M. Then h = silu(H + W_h (R * attention)),
    and the output is phi * (h - x), so that with the encoder's residual a position moves from x
    towards h. The attention has one head, and a bias for each distance. The moving average runs in
    float32 regardless of autocast.

    Args:
        shape: Sizes; there is one head whatever `heads` is, and `dropout` drops attention weights.
        values: Width V of the values; None for 2 D.
        queries: Width Z of queries and keys.
        states: Exponentials per channel and direction of the moving average.
        truncation: Longest lag that the moving average sees, plus one; None for all lags.
        bidirectional: Whether the moving average also includes later positions.
        weighting: `softmax`, or `laplace`: 1/2 (1 + erf((s - .707107) / (.282095 sqrt 2))) of the
            scores s divided by the number of real keys.
        chunk: Tokens per chunk, outside of which its tokens attend to nothing; None for attention
            over the whole sequence.
        norm: Norm inside the unit, so that the residual is the input before the norm; `none` if
            the norm comes after the unit.
        dropout: Probability of dropping an element of the moving average, and of h.

    Raises:
        ValueError: A value is out of range; the message names the option.
    """

    @property
    def memory_growth(self) -> int:
        """The power of N with which memory grows."""
        return 2 if self.chunk is None else 1

    def __init__(
        self,
        shape: AttentionShape,
        *,
        values: int | None = None,
        queries: int = 64,
        states: int = 16,
        truncation: int | None = None,
        bidirectional: bool = True,
        weighting: Weighting = "softmax",
        chunk: int | None = None,
        norm: Norm = "none",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        values = 2 * shape.dim if values is None else values
        optional = {"truncation": truncation, "chunk": chunk}
        given = {key: value for key, value in optional.items() if value is not None}
        at_least(1, values=values, queries=queries, states=states, **given)
        one_of(get_args(Weighting), weighting=weighting)
        one_of(get_args(Norm), norm=norm)
        within(0, 1, dropout=dropout)
        self.weighting, self.chunk = weighting, chunk
        self.widths = (shape.dim, queries, values, shape.dim)
        self.norm = None
        if norm != "none":
            self.norm = build_norm(
                norm,
                shape.dim,
                shape.norm_epsilon,
                momentum=shape.norm_momentum,
                padding=shape.norm_padding,
            )
        self.average = MovingAverage(
            shape.dim, states=states, truncation=truncation, bidirectional=bidirectional
        )
        self.value = _linear(shape.dim, values)
        self.mixed = _linear(shape.dim, sum(self.widths))
        self.out = _linear(values, shape.dim)
        self.scale = nn.Parameter(0.02 * torch.randn(2, queries))
        self.shift = nn.Parameter(torch.zeros(2, queries))
        reach = shape.max_length if chunk is None else chunk
        # One bias for each distance, from -(reach - 1) on.
        self.distance_bias = nn.Parameter(0.02 * torch.randn(2 * reach - 1))
        self.attention_dropout = Dropout(shape.dropout)
        self.dropout = Dropout(dropout)

    @property
    def pad_invariant(self) -> bool:
        """Whether the amount of padding changes nothing: not so if its norm counts padding."""
        return not (isinstance(self.norm, BatchNorm) and self.norm.padding)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Transform `x` `(B, N, D)`; `mask` `(B, N)` bool or None."""
        return self._run(x, mask, plain=False)

    def reference(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute `forward` with the average as a recurrence, and chunks as masks on all pairs."""
        return self._run(x, mask, plain=True)

    def _run(self, x: Tensor, mask: Tensor | None, plain: bool) -> Tensor:
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0.0)
        normed = x if self.norm is None else self.norm(x, mask)
        average = (self.average.reference if plain else self.average)(normed, mask).to(x.dtype)
        mixed = self.mixed(self.dropout(average))
        update, query_key, gate, candidate = mixed.split(self.widths, -1)
        scaled = F.silu(query_key)[..., None, :] * self.scale + self.shift
        q, k = scaled.unbind(-2)  # (B, N, Z) each
        v = F.silu(self.value(normed))
        attended = (self._attend_plain if plain else self._attend)(q, k, v, mask)
        h = self.dropout(F.silu(candidate + self.out(F.silu(gate) * attended)))
        output: Tensor = torch.sigmoid(update) * (h - x)
        return output

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        batch, length = q.shape[:2]
        size = length if self.chunk is None else min(self.chunk, length)
        gap = -length % size
        real = q.new_ones(batch, length, dtype=torch.bool) if mask is None else mask
        real = F.pad(real, (0, gap)).view(batch, -1, 1, size)  # (B, K, 1, T)
        q, k, v = (F.pad(t, (0, 0, 0, gap)).view(batch, -1, size, t.shape[-1]) for t in (q, k, v))
        first = len(self.distance_bias) // 2 - (size - 1)
        # Row i holds the biases of the distances -i to size - 1 - i: windows of one vector.
        near = self.distance_bias[first : first + 2 * size - 1]
        bias = near.unfold(0, size, 1).flip(0)
        scores = full_precision(q @ k.mT)
        weights = self._weights(scores, bias, real, real.sum(-1, keepdim=True))
        attended: Tensor = self.attention_dropout(weights.to(v.dtype)) @ v
        return attended.flatten(1, 2)[:, :length]

    def _attend_plain(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        length = q.shape[1]
        size = length if self.chunk is None else min(self.chunk, length)
        place = torch.arange(length, device=q.device)
        allowed = (place[:, None] // size == place // size)[None]  # (1, N, N)
        if mask is not None:
            allowed = allowed & mask[:, None]
        distance = place - place[:, None] + len(self.distance_bias) // 2
        bias = self.distance_bias[distance.clamp(0, len(self.distance_bias) - 1)]
        weights = self._weights(q @ k.mT, bias, allowed, allowed.sum(-1, keepdim=True))
        return weights @ v

    def _weights(self, scores: Tensor, bias: Tensor, allowed: Tensor, count: Tensor) -> Tensor:
        if self.weighting == "softmax":
            return masked_softmax(scores / math.sqrt(self.widths[1]) + bias, allowed)
        scores = scores / count.clamp(min=1) + bias
        weights = torch.erf((scores - LAPLACE_MEAN) / (LAPLACE_STD * math.sqrt(2)))
        return (0.5 + 0.5 * weights).masked_fill(~allowed, 0.0)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer
