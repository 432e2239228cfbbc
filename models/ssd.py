"""State-space duality: linear attention with a scalar decay per head and token (arXiv 2405.21060).

This is Mamba-2's recurrence in both directions, as suits a benchmark that classifies whole
sequences, with queries, keys and values of one width for each head. It leaves out Mamba-2's short
convolution, the SiLU after it, and the skip D x.

Axes: B batch, H heads, L length, K head width, M chunks, C tokens per chunk.
"""

import torch
from torch import Tensor

from models.gated_heads import GatedAttention, Qkv, in_chunks
from models.heads import AttentionShape

# Chunks whose pairs are computed at once.
GROUP = 64


def decayed_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, bidirectional: bool = True
) -> Tensor:
    """Compute `decayed_attention` as a recurrence, token by token: the plain form.

    S[t] = exp(g[t]) S[t-1] + k[t] v[t]^T and o[t] = q[t] S[t]. The backward direction is the same,
    without the token itself, which has already been seen.
    """
    state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    outputs = []
    for t in range(q.shape[2]):
        state = g[:, :, t, None, None].exp() * state + k[:, :, t, :, None] * v[:, :, t, None]
        outputs.append((q[:, :, t, None] @ state)[:, :, 0])
    state = torch.zeros_like(state)
    for t in reversed(range(q.shape[2] if bidirectional else 0)):
        state = g[:, :, t, None, None].exp() * state
        outputs[t] = outputs[t] + (q[:, :, t, None] @ state)[:, :, 0]
        state = state + k[:, :, t, :, None] * v[:, :, t, None]
    return torch.stack(outputs, 2)


def decayed_attention(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, chunk: int, bidirectional: bool = True
) -> Tensor:
    """Compute linear attention in which the weight of a pair decays with every token in between.

        o[i] = sum_j exp(sum of g between i and j) (q[i] . k[j]) v[j]

    The tokens in between are j + 1 to i if j comes first, and i to j - 1 if i does. Within a chunk,
    all pairs are computed; between chunks, the sums of k v^T, one per chunk.

    Args:
        q: Queries `(B, H, L, K)`.
        k: Keys of the same shape.
        v: Values of the same shape.
        g: Logarithms of the decays `(B, H, L)`, at most 0.
        chunk: C; the length of the sequence gives the parallel form.
        bidirectional: Whether a token also sees the tokens after it.

    Returns:
        `(B, H, L, K)`.
    """
    length = q.shape[2]
    q, k, v, g = (in_chunks(each, min(chunk, length)) for each in (q, k, v, g))
    after = g.cumsum(-1)  # (B, H, M, C), this token's decay included
    before = after - g
    whole = after[..., -1]
    # Differences before exponentials, which would overflow by themselves.
    past = (after[..., :, None] - after[..., None, :]).tril()
    decay = past.exp().tril()
    if bidirectional:
        decay = decay + (before[..., None, :] - before[..., :, None]).triu(1).exp().triu(1)
    output = (q @ k.mT * decay) @ v
    if q.shape[2] > 1:
        ends = (k * (whole[..., None] - after).exp()[..., None]).mT @ v  # (B, H, M, K, K)
        earlier = _carried(ends.flatten(-2), whole).view_as(ends)
        output = output + (q * after.exp()[..., None]) @ earlier
    if q.shape[2] > 1 and bidirectional:
        starts = (k * before.exp()[..., None]).mT @ v
        later = _carried(starts.flatten(-2).flip(2), whole.flip(2)).flip(2).view_as(starts)
        output = output + (q * (whole[..., None] - before).exp()[..., None]) @ later
    return output.flatten(2, 3)[:, :, :length]


def _carried(states: Tensor, whole: Tensor) -> Tensor:
    """Return what reaches each chunk of the states of the chunks before it.

    Chunks are grouped like tokens: all pairs within a group, and one state each between groups.

    Args:
        states: State that each chunk leaves, flat, `(B, H, M, K K)`.
        whole: Logarithm of each chunk's decay `(B, H, M)`.
    """
    number = whole.shape[2]
    # Groups of one size, so that little padding is needed to fill them.
    group = -(-number // -(-number // GROUP))
    states, whole = in_chunks(states, group), in_chunks(whole, group)
    after = whole.cumsum(-1)  # (B, H, groups, chunks of a group)
    before = after - whole
    # A state decays over the chunks in between, not over its own or the one that it reaches.
    between = (before[..., :, None] - after[..., None, :]).tril(-1).exp().tril(-1)
    reached = between @ states
    if states.shape[2] > 1:
        ends = (after[..., -1:] - after).exp()[..., None, :] @ states  # (B, H, groups, 1, K K)
        earlier = _carried(ends[..., 0, :], after[..., -1])
        reached = reached + before.exp()[..., None] * earlier[..., None, :]
    return reached.flatten(2, 3)[:, :, :number]


class SSD(GatedAttention):
    """Linear attention, in both directions, with decays that depend on the tokens.

    Values are multiplied by the step dt, as in Mamba-2's discretisation. Masked positions add
    nothing and do not decay what passes them. Everything but the projections is computed in at
    least float32. No weights are formed, so there are none to drop: `shape.dropout` has no effect.

    Args:
        shape: Sizes and biases.
        chunk: Tokens per chunk; affects results only by rounding.
        bidirectional: Whether a token also sees the tokens after it.

    Raises:
        ValueError: `chunk` is below 1.
    """

    def __init__(
        self, shape: AttentionShape, *, chunk: int = 64, bidirectional: bool = True
    ) -> None:
        super().__init__(shape, chunk, bidirectional)

    def attend(self, x: Tensor, mask: Tensor | None, qkv: Qkv, plainly: bool) -> Tensor:
        """Compute linear attention with decays, in chunks or as a recurrence."""
        q, k, v = qkv
        step, g = self.heads.steps(x, mask)
        q, v = q * q.shape[-1] ** -0.5, v * step[..., None]
        if plainly:
            return decayed_attention_reference(q, k, v, g, self.bidirectional)
        return decayed_attention(q, k, v, g, self.chunk, self.bidirectional)
