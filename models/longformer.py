"""Longformer's attention (Beltagy et al. 2020, arXiv 2004.05150, section 3.1).

A token attends to the tokens at most `window // 2` away and to the first `num_global` tokens, and
those attend to all. Queries are cut in blocks as long as half a window; a block's keys are then its
own block and the two beside it. So memory and time grow linearly with N; no `(N, N)` matrix is
formed.

Axes: B batch, H heads, N length, X blocks, b tokens per block, G global tokens, K head width,
D model width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.dropout import drop
from models.heads import AttentionShape, HeadProjections, masked_softmax
from models.options import at_least, even


def window_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, window: int, num_global: int
) -> Tensor:
    """Attend with a dense `(N, N)` matrix of which most is masked: the plain form."""
    place = torch.arange(q.shape[-2], device=q.device)
    near = (place[:, None] - place).abs() <= window // 2
    allowed = near | (place < num_global) | (place[:, None] < num_global)
    if mask is not None:
        allowed = allowed & mask[:, None, None, :]
    logits = q @ k.mT / q.shape[-1] ** 0.5  # (B, H, N, N)
    return masked_softmax(logits, allowed) @ v


def _neighbours(blocks: Tensor) -> Tensor:
    """Join each block of `(..., X, b, C)` with those before and after it: `(..., X, 3 b, C)`."""
    beyond = torch.zeros_like(blocks[..., :1, :, :])
    before = torch.cat([beyond, blocks[..., :-1, :, :]], -3)
    after = torch.cat([blocks[..., 1:, :, :], beyond], -3)
    return torch.cat([before, blocks, after], -2)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    window: int,
    num_global: int,
    dropout: float = 0.0,
) -> Tensor:
    """Attend within a sliding window, and from and to the first tokens.

    Args:
        q: Queries `(B, H, N, K)`.
        k: Keys `(B, H, N, K)`.
        v: Values `(B, H, N, K)`.
        mask: `(B, N)` bool, True for real keys; None when all are. A token without a real key
            attends to nothing: its output is 0.
        window: Even; half of it to either side of a token, itself besides.
        num_global: Tokens at the start that attend to all and are attended by all.
        dropout: Probability of dropping an attention weight.

    Returns:
        `(B, H, N, K)`, section 3.1 of arXiv 2004.05150.
    """
    batch, heads, length, width = q.shape
    num_global, size = min(num_global, length), window // 2
    fill = -length % size
    blocks = (batch, heads, -1, size, width)
    q = q / width**0.5
    real = torch.ones(1, length, dtype=torch.bool, device=q.device) if mask is None else mask
    q_blocks, k_blocks, v_blocks = (F.pad(t, (0, 0, 0, fill)).reshape(blocks) for t in (q, k, v))

    # The global tokens come first among a block's keys, and not again in the window.
    place = torch.arange(length + fill, device=q.device)
    local = F.pad(real, (0, fill)) & (place >= num_global)
    local_keys = _neighbours(local.view(len(real), -1, size, 1)).mT  # (B, X, 1, 3b)
    offset = torch.arange(3 * size, device=q.device) - size
    near = (place[:size, None] - offset).abs() <= size  # (b, 3b)
    local_keys = (local_keys & near)[:, None]  # (B, 1, X, b, 3b)
    global_keys = real[:, None, None, None, :num_global]
    allowed = torch.cat(
        [global_keys.expand(*local_keys.shape[:-1], num_global), local_keys], -1
    )  # (B, 1, X, b, G + 3b)

    to_global = q_blocks @ k[..., None, :num_global, :].mT  # (B, H, X, b, G)
    to_local = q_blocks @ _neighbours(k_blocks).mT  # (B, H, X, b, 3b)
    weights = masked_softmax(torch.cat([to_global, to_local], -1), allowed)
    weights = drop(weights, dropout)
    from_global = weights[..., :num_global] @ v[..., None, :num_global, :]
    from_local = weights[..., num_global:] @ _neighbours(v_blocks)
    output = (from_global + from_local).flatten(2, 3)[..., :length, :]

    if num_global == 0:
        return output
    weights = masked_softmax(q[..., :num_global, :] @ k.mT, real[:, None, None])  # (B, H, G, N)
    first = drop(weights, dropout) @ v
    return torch.cat([first, output[..., num_global:, :]], -2)


class Longformer(nn.Module):
    """Multi-head attention within a sliding window, with global tokens at the start.

    Global tokens use the same projections as the others, as in the published comparisons of
    Nystromformer and MRA. The paper gives them a second set, which starts as a copy of the first.

    Args:
        shape: Sizes, attention dropout and biases.
        window: Even; half of it to either side of a token, itself besides.
        num_global: Tokens at the start that attend to all and are attended by all.

    Raises:
        ValueError: If an option is out of range.
    """

    pad_invariant = True
    memory_growth = 1

    def __init__(self, shape: AttentionShape, *, window: int = 64, num_global: int = 1) -> None:
        super().__init__()
        even(window=window)
        at_least(0, num_global=num_global)
        self.projections = HeadProjections(shape)
        self.dropout = shape.dropout
        self.window, self.num_global = window, num_global

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend over the real positions of `x` `(B, N, D)`; `mask` `(B, N)` bool or None."""
        q, k, v = self.projections.split(x, mask)
        dropout = self.dropout if self.training else 0.0
        heads = window_attention(q, k, v, mask, self.window, self.num_global, dropout)
        return self.projections.merge(heads)

    def reference(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute `forward` by the plain form, without dropout."""
        q, k, v = self.projections.split(x, mask)
        heads = window_attention_reference(q, k, v, mask, self.window, self.num_global)
        return self.projections.merge(heads)
