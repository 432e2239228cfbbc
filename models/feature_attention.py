"""Feature-map attention: weights phi(q) . phi(k), never formed (arXiv 2006.16236, eq. 4 to 6).

Keys and values are summed once, into an `(M, K)` matrix per head, and every query reads that sum:
time and memory grow linearly with N.

Axes: B batch, H heads, N length, M features, K head width.
"""

from torch import Tensor


def feature_attention_reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attend with the `(N, N)` weights materialised: the plain form of `feature_attention`."""
    weights = q @ k.transpose(-1, -2)  # (B, H, N, N)
    if mask is not None:
        weights = weights.masked_fill(~mask[:, None, None, :], 0.0)
    total = weights.sum(-1, keepdim=True)
    return weights / total.masked_fill(total == 0, 1.0) @ v


def feature_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attend with weights `q . k`, divided by their sum, without ever forming them.

    Args:
        q: Features of the queries `(B, H, N, M)`, not negative.
        k: Features of the keys `(B, H, N, M)`, not negative.
        v: Values `(B, H, N, K)`.
        mask: `(B, N)` bool, True for real keys; None when all are. A sequence without a real key
            attends to nothing: its output is 0.

    Returns:
        `(B, H, N, K)`, equation 5 of arXiv 2006.16236.
    """
    if mask is not None:
        k = k.masked_fill(~mask[:, None, :, None], 0.0)
    summed = k.transpose(-1, -2) @ v  # (B, H, M, K)
    total = q @ k.sum(-2).unsqueeze(-1)  # (B, H, N, 1)
    return q @ summed / total.masked_fill(total == 0, 1.0)
