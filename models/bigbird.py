"""BigBird's block-sparse attention (Zaheer et al. 2020, arXiv 2007.14062, section 2).

The sequence is cut into blocks. A block of queries attends to itself and its two neighbours, to the
first and the last block, and to a few blocks drawn at random for each head; the first and the last
block attend to all blocks. Memory and time therefore grow linearly with N; no `(N, N)` matrix is
formed.

All blocks, including the last one and the random ones, are those of `max_length`: a trimmed
sequence only lacks the blocks beyond its end, which would be padding, so padding changes nothing.

Axes: B batch, H heads, N length, X blocks of the sequence, Y blocks of `max_length`, b tokens per
block, S blocks that a block attends to, K head width, D model width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.dropout import drop
from models.heads import AttentionShape, HeadAttention, masked_softmax
from models.options import at_least, check_seed, odd


class Pattern(NamedTuple):
    """Which blocks each block attends to.

    Args:
        blocks: Block numbers `(H, Y, S)`.
        counts: `(H, Y, S)` bool, True for the entries of `blocks` that count; none counts twice.
        size: Tokens b per block.
        ends: Number of blocks at the start, and at the end, that attend to all blocks.
    """

    blocks: Tensor
    counts: Tensor
    size: int
    ends: int = 1


def attended_blocks(
    heads: int,
    num_blocks: int,
    random_blocks: int,
    seed: int,
    *,
    window: int = 3,
    ends: int = 1,
    random_below: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw the pattern of blocks that each block attends to.

    That the first and last blocks attend to all blocks is not part of the pattern.

    Args:
        heads: Number of heads H; each has its own random blocks.
        num_blocks: Blocks Y of the longest sequence.
        random_blocks: Random blocks per row, or fewer if fewer are left.
        seed: Seed of the draws.
        window: Odd number of blocks, centred on a row's own block.
        ends: Number of blocks at the start, and at the end, that all blocks attend to.
        random_below: Random blocks have numbers below this one; None allows any.

    Returns:
        Block numbers `(H, Y, S)`, and `(H, Y, S)` bool, True for those that count; none counts
        twice.
    """
    # The default device, meta for instance, must not affect the draws.
    generator = torch.Generator().manual_seed(seed)
    size = (heads, num_blocks, num_blocks)
    order = torch.rand(size, generator=generator, dtype=torch.float64, device="cpu")
    row = torch.arange(num_blocks, device="cpu")[:, None]
    reach, ends = window // 2, min(ends, num_blocks)
    near = row + torch.arange(-reach, reach + 1, device="cpu")  # (Y, w)
    outer = [*range(ends), *range(num_blocks - ends, num_blocks)]
    columns = torch.tensor(outer, dtype=torch.int64, device="cpu").expand(num_blocks, -1)
    # In a short sequence, a block may be among both the first and the last ones.
    twice = torch.tensor([outer.index(end) != i for i, end in enumerate(outer)], device="cpu")
    in_window = (columns - row).abs() <= reach
    taken = (row - row.mT).abs() <= reach
    taken[:, outer] = True
    if random_below is not None:
        taken[:, random_below:] = True
    drawn = order.masked_fill(taken, -1.0).topk(min(random_blocks, num_blocks))
    blocks = torch.cat([near, columns], -1).expand(heads, -1, -1)
    counts = torch.cat([(near >= 0) & (near < num_blocks), ~in_window & ~twice.bool()], -1)
    counts = counts.expand(heads, -1, -1)
    blocks = torch.cat([blocks.clamp(0, num_blocks - 1), drawn.indices], -1)
    return blocks, torch.cat([counts, drawn.values >= 0], -1)


def block_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pattern: Pattern
) -> Tensor:
    """Attend with a dense `(N, N)` matrix, most of it masked: the plain form."""
    blocks, counts, size, ends = pattern
    heads, num_blocks = blocks.shape[:2]
    pairs = torch.zeros(heads, num_blocks, num_blocks, dtype=torch.bool, device=q.device)
    for head in range(heads):
        for row in range(num_blocks):
            pairs[head, row, blocks[head, row, counts[head, row]]] = True
            pairs[head, row] |= row < ends or row >= num_blocks - ends
    length = q.shape[-2]
    allowed = pairs.repeat_interleave(size, 1).repeat_interleave(size, 2)[:, :length, :length]
    if mask is not None:
        allowed = allowed & mask[:, None, None, :]
    logits = q @ k.mT / q.shape[-1] ** 0.5  # (B, H, N, N)
    return masked_softmax(logits, allowed) @ v


def block_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pattern: Pattern, dropout: float = 0.0
) -> Tensor:
    """Attend to the blocks of a pattern; the first and last blocks attend to all blocks.

    Args:
        q: Queries `(B, H, N, K)`.
        k: Keys `(B, H, N, K)`.
        v: Values `(B, H, N, K)`.
        mask: `(B, N)` bool, True for real keys; None when all are. A token without a real key
            attends to nothing: its output is 0.
        pattern: The pattern from `attended_blocks`; N is at most Y b.
        dropout: Probability of dropping an attention weight.

    Returns:
        `(B, H, N, K)`, section 2 of arXiv 2007.14062.
    """
    blocks, counts, size, ends = pattern
    batch, heads, length, width = q.shape
    fill = -length % size
    num_blocks, longest = (length + fill) // size, blocks.shape[1]
    assert num_blocks <= longest, f"{length} tokens, built for at most {longest * size}"
    real = torch.ones(1, length, dtype=torch.bool, device=q.device) if mask is None else mask
    real = F.pad(real, (0, fill))
    q = F.pad(q / width**0.5, (0, 0, 0, fill)).reshape(batch, heads, num_blocks, size, width)
    k, v = F.pad(k, (0, 0, 0, fill)), F.pad(v, (0, 0, 0, fill))

    blocks, counts = blocks[:, :num_blocks], counts[:, :num_blocks]
    counts = counts & (blocks < num_blocks)
    blocks = blocks.clamp(max=num_blocks - 1)
    head = torch.arange(heads, device=q.device)[:, None, None]
    k_blocks, v_blocks = (
        t.reshape(batch, heads, num_blocks, size, width)[:, head, blocks].flatten(3, 4)
        for t in (k, v)
    )  # (B, H, X, S b, K)
    allowed = real.view(-1, num_blocks, size)[:, blocks] & counts[..., None]  # (B, H, X, S, b)
    weights = masked_softmax(q @ k_blocks.mT, allowed.flatten(3)[..., None, :])
    output = drop(weights, dropout) @ v_blocks  # (B, H, X, b, K)

    # The rows of the first blocks and, if the sequence reaches them, of the last ones.
    front = min(ends, num_blocks)
    back = max(0, num_blocks - max(longest - ends, front))
    if front == 0:
        return output.flatten(2, 3)[..., :length, :]
    rows = [*range(front), *range(num_blocks - back, num_blocks)]
    dense = torch.cat([q[:, :, row] for row in rows], -2)  # (B, H, b rows, K)
    weights = masked_softmax(dense @ k.mT, real[:, None, None])
    outer = drop(weights, dropout) @ v
    middle = output[:, :, front : num_blocks - back].flatten(2, 3)
    split = front * size
    output = torch.cat([outer[..., :split, :], middle, outer[..., split:, :]], -2)
    return output[..., :length, :]


class BigBird(HeadAttention):
    """Multi-head block-sparse attention: window, first and last blocks, and random blocks.

    Args:
        shape: Sizes, attention dropout and biases; `shape.max_length` determines the last block.
        block_size: Tokens per block.
        random_blocks: Number of random blocks that each block attends to.
        seed: Seed of the random blocks, which are drawn once and kept; all layers have the same
            ones.
        window_blocks: Odd number of blocks, centred on its own, that each block attends to.
        global_blocks: Number of blocks at the start, and at the end, that attend to all blocks and
            are attended to by all.
        random_limit: Number of tokens at the start among which the random blocks lie, rounded down
            to whole blocks, 1,024 as published; None for all.

    Raises:
        ValueError: An option is out of range.
    """

    pad_invariant = True
    memory_growth = 1

    def __init__(
        self,
        shape: AttentionShape,
        *,
        block_size: int = 32,
        random_blocks: int = 2,
        seed: int = 0,
        window_blocks: int = 3,
        global_blocks: int = 1,
        random_limit: int | None = None,
    ) -> None:
        at_least(1, block_size=block_size)
        at_least(0, random_blocks=random_blocks, global_blocks=global_blocks)
        odd(window_blocks=window_blocks)
        if random_limit is not None:
            at_least(block_size, random_limit=random_limit)
        check_seed(seed)
        super().__init__(shape)
        self.block_size, self.global_blocks = block_size, global_blocks
        blocks, counts = attended_blocks(
            shape.heads,
            -(-shape.max_length // block_size),
            random_blocks,
            seed,
            window=window_blocks,
            ends=global_blocks,
            random_below=None if random_limit is None else random_limit // block_size,
        )
        self.blocks: Tensor
        self.counts: Tensor
        self.register_buffer("blocks", blocks)
        self.register_buffer("counts", counts)

    @property
    def pattern(self) -> Pattern:
        """Which blocks each block attends to."""
        return Pattern(self.blocks, self.counts, self.block_size, self.global_blocks)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float
    ) -> Tensor:
        """Attend to the blocks of the pattern."""
        return block_attention(q, k, v, mask, self.pattern, dropout)

    def attend_reference(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Compute `attend` in its plain form, without dropout."""
        return block_attention_reference(q, k, v, mask, self.pattern)
