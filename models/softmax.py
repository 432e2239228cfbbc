"""Softmax attention (Vaswani et al. 2017, arXiv 1706.03762, equation 1).

Axes: B batch, H heads, N length, K head width, D model width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from models.dropped_attention import dropped_attention, is_supported
from models.heads import AttentionShape, HeadProjections, masked_softmax


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    dropout: float = 0.0,
    kept: Tensor | None = None,
) -> Tensor:
    """Compute softmax attention with the weights materialised: the plain form.

    Args:
        q: Queries `(B, H, N, K)`.
        k: Keys `(B, H, N, K)`.
        v: Values `(B, H, N, K)`.
        mask: `(B, N)` bool, True for real keys; None when all are. A sequence without a real key
            attends to nothing: its output is 0.
        dropout: Probability of dropping an attention weight.
        kept: `(B, H, N, N)` bool, the weights that are kept; None draws them.

    Returns:
        `(B, H, N, K)`, equation 1 of arXiv 1706.03762.
    """
    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5  # (B, H, N, N)
    weights = logits.softmax(-1) if mask is None else masked_softmax(logits, mask[:, None, None, :])
    if kept is None:
        return F.dropout(weights, dropout) @ v
    return weights.masked_fill(~kept, 0.0) / (1 - dropout) @ v


class Softmax(nn.Module):
    """Multi-head softmax attention, by default without materialising the `(N, N)` weights.

    It uses torch's `scaled_dot_product_attention`, except in training with attention dropout on the
    CPU: there torch materialises the weights, so the kernel of `models/dropped_attention.py` is
    used (`scripts/bench_dropout.py` measures both).

    Args:
        shape: Sizes, attention dropout and biases.
        fused: If False, materialise the weights, as the published implementations do.
    """

    pad_invariant = True

    @property
    def memory_growth(self) -> int:
        """The power of N with which memory grows: 2 if the weights are materialised."""
        return 1 if self.fused else 2

    @property
    def thread_safe(self) -> bool:
        """Whether threads may call it at once: not so if torch's generator drops the weights."""
        return self.fused or self.dropout == 0

    def __init__(self, shape: AttentionShape, *, fused: bool = True) -> None:
        super().__init__()
        self.projections = HeadProjections(shape)
        self.dropout = shape.dropout
        self.fused = fused

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend over the real positions of `x` `(B, N, D)`; `mask` `(B, N)` bool or None."""
        q, k, v = self.projections.split(x, mask)
        dropout = self.dropout if self.training else 0.0
        if self.fused and is_supported(q, dropout):
            heads = dropped_attention(q, k, v, mask, dropout)
        elif self.fused:
            keys = None if mask is None else mask[:, None, None, :]
            heads = F.scaled_dot_product_attention(q, k, v, keys, dropout)
        else:
            heads = softmax_attention(q, k, v, mask, dropout)
        return self.projections.merge(heads)

    def reference(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute `forward` in its plain form, without dropout."""
        q, k, v = self.projections.split(x, mask)
        return self.projections.merge(softmax_attention(q, k, v, mask))
