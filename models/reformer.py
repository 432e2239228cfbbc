"""Reformer's attention by locality-sensitive hashing (Kitaev et al. 2020, arXiv 2001.04451).

Queries and keys share one projection, with the keys scaled to unit length. In every round of
hashing, each token falls into the bucket of the random direction that it is most aligned with.
Tokens are sorted by bucket and cut into chunks, and a chunk attends to itself and the previous
chunk (section 2, LSH attention). Rounds are weighted by their normalisers. Memory and time
therefore grow linearly with N.

Buckets only sort: within a chunk's reach, all tokens attend to each other, and a pair that meets in
several rounds counts in each. This is the form of the published comparisons, which use Hugging
Face's implementation; the paper's appendix A would mask other buckets and divide by the number of
meetings. As in the paper, but not in that code, the first chunk has no chunk before it.

Masked tokens are sorted behind all others, so padding changes nothing.

Axes: B batch, H heads, N length, R rounds, X chunks, c tokens per chunk, K head width, S random
directions, D model width.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.dropout import drop
from models.heads import AttentionShape, HeadProjections
from models.options import at_least, check_seed, even
from models.precision import without_autocast

# Logits of a token with itself, and with tokens that it must not attend to at all.
SELF, NEVER = -1e5, -1e9
# Bucket of tokens that are not real; no other bucket has this number.
LAST = 2**30


def bucket_factors(max_length: int, chunk_length: int) -> tuple[int, ...]:
    """Choose the number of buckets: the largest power of two up to two per chunk, at least two.

    A large number is split into two factors, so that there are fewer directions to compare.

    Returns:
        The factors, as in Hugging Face's implementation.
    """
    power = max((2 * (max_length // chunk_length)).bit_length() - 1, 1)
    if 2**power <= 2 * max(math.isqrt(max_length // chunk_length), chunk_length):
        return (2**power,)
    return 2 ** (power // 2), 2 ** (power - power // 2)


def random_rotations(shape: tuple[int, int, int, int], seed: int, more: int = 0) -> Tensor:
    """Draw Gaussian directions, which do not depend on the default device.

    Args:
        shape: Heads H, head width K, rounds R, directions S per round.
        seed: Seed of the draws.
        more: Number of additional rounds, which leave the first ones unchanged.

    Returns:
        `(H, K, R + more, S)`.
    """
    generator = torch.Generator().manual_seed(seed)
    heads, width, rounds, directions = shape
    draws = [
        torch.randn(
            (heads, width, some, directions),
            generator=generator,
            dtype=torch.float64,
            device="cpu",
        )
        for some in (rounds, more)
    ]
    return torch.cat(draws, 2).to(torch.get_default_dtype())


@torch.no_grad()
def hash_buckets(qk: Tensor, rotations: Tensor, factors: tuple[int, ...]) -> Tensor:
    """Compute each token's bucket in each round, from the direction it is most aligned with.

    Args:
        qk: Queries `(B, H, N, K)`, float32 or float64; their lengths do not matter.
        rotations: Directions `(H, K, R, S)`; each stands for itself and its opposite.
        factors: Even numbers of buckets, whose halves add up to S. The number of a bucket has one
            digit for each factor.

    Returns:
        `(R, B, H, N)` int64 below the product of the factors.
    """
    batch, heads, length, _ = qk.shape
    rounds, directions = rotations.shape[2:]
    along = qk @ rotations.flatten(2).to(qk)
    along = along.view(batch, heads, length, rounds, directions)
    number = along.new_zeros(batch, heads, length, rounds, dtype=torch.int64)
    halves = [factor // 2 for factor in factors]
    for part, factor in zip(torch.split(along, halves, -1), factors, strict=True):
        high, low = part.max(-1), part.min(-1)
        opposite = low.indices + factor // 2
        digit = torch.where(high.values >= -low.values, high.indices, opposite)
        number = number * factor + digit
    return number.permute(3, 0, 1, 2).contiguous()


def unit_length(qk: Tensor) -> Tensor:
    """Scale queries to keys of unit length, with Hugging Face's epsilon near zero."""
    return qk * (qk.square().sum(-1, keepdim=True) + 1e-6 * qk.shape[-1]).rsqrt()


def lsh_attention_reference(
    qk: Tensor, v: Tensor, mask: Tensor | None, buckets: Tensor, chunk_length: int
) -> Tensor:
    """Attend with a dense `(N, N)` matrix per round, most of it masked: the plain form."""
    length = qk.shape[-2]
    place = torch.arange(length, device=qk.device)
    if mask is not None:
        buckets = buckets.masked_fill(~mask[:, None], int(buckets.max()) + 1)
    key = buckets * length + place
    chunk = (key[..., None] > key[..., None, :]).sum(-1) // chunk_length  # (R, B, H, N)
    behind = chunk[..., None] - chunk[..., None, :]
    allowed = (behind == 0) | (behind == 1)
    if mask is not None:
        allowed = allowed & mask[:, None, None, :]
    logits = qk @ unit_length(qk).mT  # (B, H, N, N)
    logits = logits.masked_fill(place == place[:, None], SELF)
    logits = logits.masked_fill(~allowed, NEVER)
    of_rounds = logits.softmax(-1).masked_fill(~allowed, 0.0) @ v  # (R, B, H, N, K)
    weights = logits.logsumexp(-1, keepdim=True).softmax(0)
    return (weights * of_rounds).sum(0)


class _Rows(torch.autograd.Function):
    """Take each row of a matrix once for every round; the gradient reverses this."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, take: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return rows.index_select(0, take)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        rows = gradients[0].index_select(0, back.flatten())
        return rows.view(*back.shape, -1).sum(0), None, None


def take_rows(rows: Tensor, take: Tensor, back: Tensor) -> Tensor:
    """Reorder rows by one permutation per round, without the scattered sums of a plain gradient.

    Args:
        rows: `(M, C)`.
        take: Rows to take, `(R M,)`; each one appears R times.
        back: Places to which each row went, `(R, M)`.

    Returns:
        `(R M, C)`.
    """
    # torch leaves Function.apply untyped.
    taken: Tensor = _Rows.apply(rows, take, back)  # type: ignore[no-untyped-call]
    return taken


def _with_previous(chunks: Tensor) -> Tensor:
    """Put the previous chunk in front of each chunk of `(..., X, c, C)`: `(..., X, 2 c, C)`.

    In front of the first one is the last, which is never attended to.
    """
    return torch.cat([chunks.roll(1, -3), chunks], -2)


def _attend_in_chunks(
    qk: Tensor, v: Tensor, num_real: Tensor, dropout: float
) -> tuple[Tensor, Tensor]:
    """Attend from each chunk to itself and the previous one.

    Args:
        qk: Sorted queries `(R, B, H, X, c, K)`.
        v: Their values, 0 under the mask.
        num_real: Number of real tokens, `(B,)` or `(1,)`; they come first.
        dropout: Probability of dropping an attention weight.

    Returns:
        Outputs like `v`, and the logarithms of the normalisers `(R, B, H, X, c, 1)`.
    """
    num_chunks, size = qk.shape[-3:-1]
    start = torch.arange(0, num_chunks * size, size, device=qk.device)
    reach = torch.arange(-size, size, device=qk.device)
    place = start[:, None, None] + reach  # (X, 1, 2c)
    allowed = (place >= 0) & (place < num_real[:, None, None, None])
    itself = reach == reach[size:, None]  # (c, 2c)
    bias = torch.where(itself, SELF, 0.0).to(qk.dtype).where(allowed, NEVER)  # (B, X, c, 2c)
    # In place, because these are the largest tensors; autocast would leave them in bf16.
    logits = (qk @ _with_previous(unit_length(qk)).mT).to(qk.dtype)  # (R, B, H, X, c, 2c)
    logits = logits.add_(bias[:, None])
    top = logits.detach().amax(-1, keepdim=True)
    weights = logits.sub_(top).exp_()
    total = weights.sum(-1, keepdim=True)
    output = drop(weights, dropout) @ _with_previous(v)
    return output / total, top + total.log()


def lsh_attention(
    qk: Tensor,
    v: Tensor,
    mask: Tensor | None,
    buckets: Tensor,
    chunk_length: int,
    dropout: float = 0.0,
) -> Tensor:
    """Attend to the tokens that hash alike.

    Args:
        qk: Queries `(B, H, N, K)`, which are also the keys.
        v: Values `(B, H, N, K)`.
        mask: `(B, N)` bool, True for real tokens; None when all are. The output is 0 for a
            sequence without real tokens.
        buckets: Buckets of the tokens, `(R, B, H, N)` int64.
        chunk_length: Tokens c per chunk.
        dropout: Probability of dropping an attention weight.

    Returns:
        `(B, H, N, K)`, sections 2 and 3 of arXiv 2001.04451. A token attends to itself only if it
        reaches no other token.
    """
    batch, heads, length, width = qk.shape
    rounds, fill = len(buckets), -length % chunk_length
    padded = length + fill
    if mask is not None:
        buckets = buckets.masked_fill(~mask[:, None], LAST)
        v = v.masked_fill(~mask[:, None, :, None], 0.0)
    order = F.pad(buckets, (0, fill), value=LAST).sort(dim=-1, stable=True).indices
    place = torch.arange(padded, device=qk.device)
    inverse = torch.empty_like(order).scatter_(-1, order, place.expand_as(order))
    # Rows are numbered across batch and heads; sorted rows are also numbered across rounds.
    first = torch.arange(0, rounds * batch * heads * padded, padded, device=qk.device)
    first = first.view(rounds, batch, heads, 1)
    to_sorted = (order + first[0]).flatten()
    from_sorted = (inverse + first).flatten()

    both = F.pad(torch.cat([qk, v], -1), (0, 0, 0, fill)).flatten(0, 2)  # (B H N, 2K)
    both = take_rows(both, to_sorted, from_sorted.view(rounds, -1))
    qk, v = torch.split(both.view(rounds, batch, heads, -1, chunk_length, 2 * width), width, -1)
    num_real = place.new_full((1,), length) if mask is None else mask.sum(-1)
    output, normaliser = _attend_in_chunks(qk, v, num_real, dropout)

    both = torch.cat([output, normaliser], -1).flatten(0, 4)  # (R B H N, K + 1)
    both = take_rows(both, from_sorted, (order + first).view(1, -1))
    both = both.view(rounds, batch, heads, padded, width + 1)[..., :length, :]
    output, normaliser = torch.split(both, [width, 1], -1)
    return (output * normaliser.softmax(0)).sum(0)


class Reformer(nn.Module):
    """Multi-head attention among tokens that hash alike.

    Queries and keys share their projection, so that a layer has a quarter fewer parameters than
    softmax attention. They are projected in float32 even under autocast, because rounding would
    move tokens to different buckets.

    Args:
        shape: Sizes, attention dropout and biases; `shape.max_length` determines the buckets.
        num_hashes: Number of hashing rounds R.
        chunk_length: Tokens per chunk; each attends to its chunk and the previous one.
        num_buckets: Even number of buckets; None for the largest power of two up to two per chunk
            of `shape.max_length`.
        seed: Seed of the directions, which are drawn once and kept. Each head and round has its
            own; all layers have the same ones.
        eval_hashes: Number of rounds in evaluation, more or fewer; None for as many as in training.

    Raises:
        ValueError: An option is out of range.
    """

    pad_invariant = True
    memory_growth = 1

    def __init__(
        self,
        shape: AttentionShape,
        *,
        num_hashes: int = 2,
        chunk_length: int = 64,
        num_buckets: int | None = None,
        seed: int = 0,
        eval_hashes: int | None = None,
    ) -> None:
        super().__init__()
        at_least(1, num_hashes=num_hashes, chunk_length=chunk_length)
        if num_buckets is not None:
            even(num_buckets=num_buckets)
        check_seed(seed)
        self.num_hashes = num_hashes
        self.eval_hashes = num_hashes if eval_hashes is None else eval_hashes
        at_least(1, eval_hashes=self.eval_hashes)
        self.projections = HeadProjections(shape, shared_qk=True)
        self.dropout = shape.dropout
        self.chunk_length = chunk_length
        chosen = bucket_factors(shape.max_length, chunk_length)
        self.factors = chosen if num_buckets is None else (num_buckets,)
        size = (shape.heads, shape.head_dim, num_hashes, sum(self.factors) // 2)
        more = max(0, self.eval_hashes - num_hashes)
        self.rotations: Tensor
        self.register_buffer("rotations", random_rotations(size, seed, more))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend over the real positions of `x` `(B, N, D)`; `mask` `(B, N)` bool or None."""
        qk, v, buckets = self._hash(x, mask)
        dropout = self.dropout if self.training else 0.0
        heads = lsh_attention(qk, v, mask, buckets, self.chunk_length, dropout)
        return self.projections.merge(heads)

    def _hash(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        with without_autocast(x):
            exact = x.to(self.projections.qkv.weight.dtype)
            qk, _, v = self.projections.split(exact, mask)
            rounds = self.num_hashes if self.training else self.eval_hashes
            return qk, v, hash_buckets(qk, self.rotations[:, :, :rounds], self.factors)

    def reference(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute `forward` in its plain form, without dropout."""
        qk, v, buckets = self._hash(x, mask)
        heads = lsh_attention_reference(qk, v, mask, buckets, self.chunk_length)
        return self.projections.merge(heads)
