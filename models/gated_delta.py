"""The gated delta rule (Yang, Kautz and Hatamizadeh, arXiv 2412.06464), in both directions.

A state maps keys to values. Each token lets the state fade, removes what it returns for the token's
key, and writes the token's value in its place.

Axes: B batch, H heads, L length, K head width, M chunks, C tokens per chunk.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.gated_heads import GatedAttention, Qkv, in_chunks
from models.heads import AttentionShape
from models.precision import full_precision


def gated_delta_reference(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """Compute `gated_delta` as a recurrence, token by token: the plain form.

    S <- exp(g[t]) S, then S <- S + k[t] beta[t] (v[t] - k[t]^T S)^T, and o[t] = q[t] S.
    """
    state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    outputs = []
    for t in range(q.shape[2]):
        key = k[:, :, t, None]  # (B, H, 1, K)
        state = g[:, :, t, None, None].exp() * state
        wrong = beta[:, :, t, None, None] * (v[:, :, t, None] - key @ state)
        state = state + key.mT @ wrong
        outputs.append((q[:, :, t, None] @ state)[:, :, 0])
    return torch.stack(outputs, 2)


def gated_delta(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, chunk: int) -> Tensor:
    """Run the gated delta rule forward, a chunk at a time.

    Within a chunk, what all tokens write is the solution U of a triangular system, (I + tril(beta K
    K^T decay, -1)) U = beta (V - decayed K S), so only the chunks are processed one by one.

    Args:
        q: Queries `(B, H, L, K)`.
        k: Keys of the same shape and of length 1.
        v: Values of the same shape.
        g: Logarithms of the decays `(B, H, L)`, at most 0.
        beta: Shares of the old values that are replaced, `(B, H, L)`, from 0 to 1.
        chunk: C; 1 gives the recurrence, the length of the sequence the parallel form.

    Returns:
        `(B, H, L, K)`.
    """
    length = q.shape[2]
    q, k, v, g, beta = (in_chunks(each, min(chunk, length)) for each in (q, k, v, g, beta))
    after = g.cumsum(-1)  # (B, H, M, C)
    decay = (after[..., :, None] - after[..., None, :]).tril().exp().tril()
    system = (beta[..., None] * (k @ k.mT) * decay).tril(-1)
    faded = k * after.exp()[..., None]
    both = beta[..., None] * torch.cat([v, faded], -1)
    # The diagonal is not read; it is taken to be ones.
    solved = torch.linalg.solve_triangular(system, both, upper=False, unitriangular=True)
    written, taken = solved.split([v.shape[-1], k.shape[-1]], -1)
    seen, asked = (q @ k.mT) * decay, q * after.exp()[..., None]
    left = (k * (after[..., -1:] - after).exp()[..., None]).mT
    whole = after[..., -1, None, None].exp()
    state = q.new_zeros(*q.shape[:2], k.shape[-1], v.shape[-1])
    outputs = []
    for m in range(q.shape[2]):
        u = written[:, :, m] - taken[:, :, m] @ state
        outputs.append(asked[:, :, m] @ state + seen[:, :, m] @ u)
        state = whole[:, :, m] * state + left[:, :, m] @ u
    return torch.stack(outputs, 2).flatten(2, 3)[:, :, :length]


class GatedDelta(GatedAttention):
    """The gated delta rule over the real tokens, in both directions.

    Keys have length 1; beta = sigmoid(w x + b) is one number per head and token. The outputs of the
    two directions are added. Masked positions write nothing and let nothing fade. Everything but
    the projections is computed in at least float32. No weights are formed, so there are none to
    drop: `shape.dropout` has no effect. Unlike in the paper, queries keep their length, and there
    is no short convolution and no SiLU after it.

    Args:
        shape: Sizes and biases.
        chunk: Tokens per chunk; affects results only by rounding.
        bidirectional: Whether a token also sees the tokens after it.

    Raises:
        ValueError: `chunk` is below 1.
    """

    def __init__(
        self, shape: AttentionShape, *, chunk: int = 32, bidirectional: bool = True
    ) -> None:
        super().__init__(shape, chunk, bidirectional)
        bound = 1 / math.sqrt(shape.dim)
        self.beta_weight = nn.Parameter(torch.empty(shape.heads, shape.dim).uniform_(-bound, bound))
        self.beta_bias = nn.Parameter(torch.zeros(shape.heads))

    def attend(self, x: Tensor, mask: Tensor | None, qkv: Qkv, plainly: bool) -> Tensor:
        """Run the rule in both directions, in chunks or as a recurrence."""
        q, k, v = qkv
        _, g = self.heads.steps(x, mask)
        raw = torch.einsum("bld,hd->bhl", full_precision(x), full_precision(self.beta_weight))
        beta = torch.sigmoid(raw + self.beta_bias[:, None])
        if mask is not None:
            beta = beta.masked_fill(~mask[:, None], 0.0)
        given = [q * q.shape[-1] ** -0.5, F.normalize(k, dim=-1), v, g, beta]
        if self.bidirectional:
            # The other direction extends the batch, so that the chunks of both run at once.
            given = [torch.cat([each, each.flip(2)]) for each in given]
        q, k, v, g, beta = given
        if plainly:
            heads = gated_delta_reference(q, k, v, g, beta)
        else:
            heads = gated_delta(q, k, v, g, beta, self.chunk)
        if not self.bidirectional:
            return heads
        ahead, back = heads.chunk(2)
        return ahead + back.flip(2)
