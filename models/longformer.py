"""Longformer's attention (Beltagy et al. 2020, arXiv 2004.05150, section 3.1).

A token attends to the tokens at most `window // 2` steps away and to some global tokens, which
attend to all tokens. Queries are cut into blocks as long as half a window; a block's keys are then
its own block and the two beside it. Memory and time therefore grow linearly with N; no `(N, N)`
matrix is formed.

Axes: B batch, H heads, N length, X blocks, b tokens per block, G global tokens, K head width,
D model width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.dropout import drop
from models.heads import AttentionShape, HeadAttention, masked_softmax
from models.options import at_least, even


def window_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    window: int,
    places: Sequence[int],
    dilation: int = 1,
) -> Tensor:
    """Attend with a dense `(N, N)` matrix, most of it masked: the plain form."""
    length = q.shape[-2]
    place = torch.arange(length, device=q.device)
    apart = (place[:, None] - place).abs()
    allowed = (apart <= window // 2 * dilation) & (apart % dilation == 0)
    for everywhere in places:
        if everywhere < length:
            allowed[everywhere] = True
            allowed[:, everywhere] = True
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


def _blocks(x: Tensor, size: int, dilation: int) -> Tensor:
    """Cut `(B, H, N, C)`, padded with zeros, into blocks of `size` tokens `dilation` steps apart.

    Returns:
        `(B d, H, X, b, C)`: each of the d interleaved sequences becomes one of its own.
    """
    batch, heads, length, width = x.shape
    x = F.pad(x, (0, 0, 0, -length % (size * dilation)))
    if dilation > 1:
        x = x.view(batch, heads, -1, dilation, width).permute(0, 3, 1, 2, 4)
    return x.reshape(batch * dilation, heads, -1, size, width)


def _together(x: Tensor, dilation: int) -> Tensor:
    """Interleave sequences `(B d, H, N / d, C)` again: `(B, H, N, C)`."""
    if dilation == 1:
        return x
    x = x.view(-1, dilation, *x.shape[1:]).permute(0, 2, 3, 1, 4)
    return x.flatten(2, 3)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    window: int,
    places: Sequence[int],
    dilation: int = 1,
    dropout: float = 0.0,
    index: Tensor | None = None,
) -> Tensor:
    """Attend within a sliding window, and from and to the global tokens.

    Args:
        q: Queries `(B, H, N, K)`.
        k: Keys `(B, H, N, K)`.
        v: Values `(B, H, N, K)`.
        mask: `(B, N)` bool, True for real keys; None when all are. A token without a real key
            attends to nothing: its output is 0.
        window: Even width of the window: half of it on either side of a token, besides the token
            itself.
        places: Positions of the global tokens, which attend to all tokens and are attended to by
            all, in ascending order; positions from N on are ignored.
        dilation: Steps between the tokens of a window.
        dropout: Probability of dropping an attention weight.
        index: `places` as a tensor on the device, which otherwise waits for a copy of them.

    Returns:
        `(B, H, N, K)`, section 3.1 of arXiv 2004.05150.
    """
    batch, heads, length, width = q.shape
    chosen = [place for place in places if place < length]
    if index is None:
        index = torch.tensor(places, dtype=torch.int64, device=q.device)
    index = index[: len(chosen)]
    # A slice if they are the first tokens, because it copies nothing.
    first = chosen == list(range(len(chosen)))
    here = slice(len(chosen)) if first else index
    q = q / width**0.5
    real = torch.ones(1, length, dtype=torch.bool, device=q.device) if mask is None else mask
    # The global tokens come first among a block's keys and do not appear again in the window.
    local = real.index_fill(1, index, False)
    global_kv = k[..., here, :], v[..., here, :]
    output = _attend_nearby(
        q, k, v, local, *global_kv, real[:, here], window // 2, dilation, dropout
    )
    if not chosen:
        return output
    weights = masked_softmax(q[..., here, :] @ k.mT, real[:, None, None])  # (B, H, G, N)
    everywhere = drop(weights, dropout) @ v
    if first:
        return torch.cat([everywhere, output[..., len(chosen) :, :]], -2)
    return output.index_copy(-2, index, everywhere.to(output.dtype))


def _attend_nearby(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    local: Tensor,
    global_k: Tensor,
    global_v: Tensor,
    global_real: Tensor,
    size: int,
    dilation: int,
    dropout: float,
) -> Tensor:
    """Attend from every token to those at most `size` dilated steps away, and to the global ones.

    Args:
        q: Scaled queries `(B, H, N, K)`.
        k: Keys of the same shape.
        v: Values of the same shape.
        local: `(B or 1, N)` bool, True for keys that are real and not global.
        global_k: Keys of the global tokens `(B, H, G, K)`.
        global_v: Values of the global tokens `(B, H, G, K)`.
        global_real: `(B or 1, G)` bool, True for global tokens that are real.
        size: Half a window.
        dilation: Steps between the tokens of a window.
        dropout: Probability of dropping an attention weight.

    Returns:
        `(B, H, N, K)`.
    """
    length, num_global = q.shape[-2], global_k.shape[-2]
    q_blocks, k_blocks, v_blocks = (_blocks(t, size, dilation) for t in (q, k, v))
    # One row can serve all sequences only if they are not interleaved.
    local = local.expand(len(q), -1) if dilation > 1 else local
    local = _blocks(local[:, None, :, None], size, dilation)[:, 0]  # (B d, X, b, 1)
    local_keys = _neighbours(local).mT  # (B d, X, 1, 3b)
    place = torch.arange(3 * size, device=q.device)
    near = (place[:size, None] + size - place).abs() <= size  # (b, 3b)
    local_keys = (local_keys & near)[:, None]  # (B d, 1, X, b, 3b)
    if dilation > 1:
        global_real = global_real.expand(len(q), -1)
        global_k, global_v, global_real = (
            t.repeat_interleave(dilation, 0) for t in (global_k, global_v, global_real)
        )
    global_keys = global_real[:, None, None, None, :]
    allowed = torch.cat(
        [global_keys.expand(*local_keys.shape[:-1], num_global), local_keys], -1
    )  # (B d, 1, X, b, G + 3b)

    to_global = q_blocks @ global_k[..., None, :, :].mT  # (B d, H, X, b, G)
    to_local = q_blocks @ _neighbours(k_blocks).mT  # (B d, H, X, b, 3b)
    weights = masked_softmax(torch.cat([to_global, to_local], -1), allowed)
    weights = drop(weights, dropout)
    from_global = weights[..., :num_global] @ global_v[..., None, :, :]
    from_local = weights[..., num_global:] @ _neighbours(v_blocks)
    return _together((from_global + from_local).flatten(2, 3), dilation)[..., :length, :]


class Longformer(HeadAttention):
    """Multi-head attention within a sliding window, with global tokens.

    Global tokens use the same projections as other tokens, as in the published comparisons of
    Nystromformer and MRA. The paper gives them a second set, which starts as a copy of the first.

    Args:
        shape: Sizes, attention dropout and biases.
        window: Even width of the window: half of it on either side of a token, besides the token
            itself.
        num_global: Number of tokens at the start that attend to all tokens and are attended to by
            all.
        global_positions: Positions of further such tokens, below `shape.max_length`.
        dilation: Steps between the tokens of a window, in all heads: 2 takes every other token, so
            that a window reaches twice as far.

    Raises:
        ValueError: An option is out of range.
    """

    pad_invariant = True
    memory_growth = 1

    def __init__(
        self,
        shape: AttentionShape,
        *,
        window: int = 64,
        num_global: int = 1,
        global_positions: tuple[int, ...] = (),
        dilation: int = 1,
    ) -> None:
        even(window=window)
        at_least(0, num_global=num_global)
        at_least(1, dilation=dilation)
        if any(not 0 <= place < shape.max_length for place in global_positions):
            raise ValueError(
                f"global_positions={global_positions}: must be from 0 to max_length - 1 ="
                f" {shape.max_length - 1}"
            )
        super().__init__(shape)
        self.window, self.dilation = window, dilation
        first = range(min(num_global, shape.max_length))
        self.places = tuple(sorted({*first, *global_positions}))
        # On the device of the model, so that no forward pass waits for a copy.
        self.place_index: Tensor
        index = torch.tensor(self.places, dtype=torch.int64)
        self.register_buffer("place_index", index, persistent=False)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float
    ) -> Tensor:
        """Attend within the window, and from and to the global tokens."""
        places, index = self.places, self.place_index
        return window_attention(q, k, v, mask, self.window, places, self.dilation, dropout, index)

    def attend_reference(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Compute `attend` in its plain form, without dropout."""
        return window_attention_reference(q, k, v, mask, self.window, self.places, self.dilation)
