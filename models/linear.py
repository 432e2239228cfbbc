"""Linear attention (Katharopoulos et al. 2020, arXiv 2006.16236, equations 4 to 7).

The weight of a key is phi(q) . phi(k) with phi = elu + 1, so keys and values are summed once, to
a `(K, K)` matrix per head, and every query reads that sum: time and memory grow linearly with N.

Axes: B batch, H heads, N length, M features, K head width, D model width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from models.heads import AttentionShape, HeadProjections
from models.kernel import kernel_attention, kernel_attention_reference


def elu_features(x: Tensor) -> Tensor:
    """Compute phi(x) = elu(x) + 1, equation 7 of arXiv 2006.16236."""
    return F.elu(x) + 1


class Linear(nn.Module):
    """Multi-head linear attention.

    The weights are never formed, so there are none to drop: `shape.dropout` has no effect.

    Args:
        shape: Sizes and biases.
    """

    pad_invariant = True
    memory_growth = 1

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__()
        self.projections = HeadProjections(shape)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend over the real positions of `x` `(B, N, D)`; `mask` `(B, N)` bool or None."""
        q, k, v = self.projections.split(x, mask)
        heads = kernel_attention(elu_features(q), elu_features(k), v, mask)
        return self.projections.merge(heads)

    def reference(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute `forward` by the plain form."""
        q, k, v = self.projections.split(x, mask)
        heads = kernel_attention_reference(elu_features(q), elu_features(k), v, mask)
        return self.projections.merge(heads)
