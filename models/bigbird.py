"""BigBird's block-sparse attention (Zaheer et al. 2020, arXiv 2007.14062, section 2).

The sequence is cut in blocks. A block of queries attends to itself and its two neighbours, to the
first and the last block, and to a few blocks drawn at random for each head; the first and the last
block attend to all. So memory and time grow linearly with N; no `(N, N)` matrix is formed.

Blocks are those of `max_length`, the last one and the random ones too: a trimmed sequence lacks the
blocks beyond it, which would be padding, so padding changes nothing.

Axes: B batch, H heads, N length, X blocks of the sequence, Y blocks of `max_length`, b tokens a
block, S blocks that a block attends to, K head width, D model width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.dropout import drop
from models.heads import AttentionShape, HeadProjections, masked_softmax
from models.options import a_seed, at_least


def attended_blocks(
    heads: int, num_blocks: int, random_blocks: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Draw the pattern: which blocks each block attends to, besides the rows of first and last.

    Args:
        heads: Number of heads H; each has its own random blocks.
        num_blocks: Blocks Y of the longest sequence.
        random_blocks: Random blocks per row, fewer where fewer are left.
        seed: Of the draws.

    Returns:
        Block numbers `(H, Y, S)`, and which of them count `(H, Y, S)` bool; those count once.
    """
    # A device that is the default, meta for instance, must not reach the draws.
    generator = torch.Generator().manual_seed(seed)
    size = (heads, num_blocks, num_blocks)
    order = torch.rand(size, generator=generator, dtype=torch.float64, device="cpu")
    row = torch.arange(num_blocks, device="cpu")[:, None]
    window = row + torch.arange(-1, 2, device="cpu")  # (Y, 3)
    ends = torch.tensor([0, num_blocks - 1], device="cpu").expand(num_blocks, 2)
    in_window = (ends - row).abs() <= 1
    taken = (row - row.mT).abs() <= 1
    taken[:, [0, num_blocks - 1]] = True
    drawn = order.masked_fill(taken, -1.0).topk(min(random_blocks, num_blocks))
    blocks = torch.cat([window, ends], -1).expand(heads, -1, -1)
    counts = torch.cat([(window >= 0) & (window < num_blocks), ~in_window], -1)
    counts = counts.expand(heads, -1, -1)
    blocks = torch.cat([blocks.clamp(0, num_blocks - 1), drawn.indices], -1)
    return blocks, torch.cat([counts, drawn.values >= 0], -1)


def block_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, blocks: Tensor, counts: Tensor, size: int
) -> Tensor:
    """Attend with a dense `(N, N)` matrix of which most is masked: the plain form."""
    heads, num_blocks = blocks.shape[:2]
    pairs = torch.zeros(heads, num_blocks, num_blocks, dtype=torch.bool, device=q.device)
    for head in range(heads):
        for row in range(num_blocks):
            pairs[head, row, blocks[head, row, counts[head, row]]] = True
    pairs[:, [0, -1]] = True
    length = q.shape[-2]
    allowed = pairs.repeat_interleave(size, 1).repeat_interleave(size, 2)[:, :length, :length]
    if mask is not None:
        allowed = allowed & mask[:, None, None, :]
    logits = q @ k.mT / q.shape[-1] ** 0.5  # (B, H, N, N)
    return masked_softmax(logits, allowed) @ v


def block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    blocks: Tensor,
    counts: Tensor,
    size: int,
    dropout: float = 0.0,
) -> Tensor:
    """Attend to the blocks of a pattern, and from the first and last block to all.

    Args:
        q: Queries `(B, H, N, K)`.
        k: Keys `(B, H, N, K)`.
        v: Values `(B, H, N, K)`.
        mask: `(B, N)` bool, True for real keys; None when all are. A token without a real key
            attends to nothing: its output is 0.
        blocks: Attended blocks `(H, Y, S)`, from `attended_blocks`; N is at most Y b.
        counts: Which of them count `(H, Y, S)` bool.
        size: Tokens b per block.
        dropout: Probability of dropping an attention weight.

    Returns:
        `(B, H, N, K)`, section 2 of arXiv 2007.14062.
    """
    batch, heads, length, width = q.shape
    fill = -length % size
    num_blocks, longest = (length + fill) // size, blocks.shape[1]
    assert num_blocks <= longest, f"{length} tokens, built for {longest * size}"
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

    # The rows of the first block and, where the sequence reaches it, of the last.
    ends = [0] if num_blocks < longest or longest == 1 else [0, num_blocks - 1]
    dense = torch.cat([q[:, :, end] for end in ends], -2)  # (B, H, b or 2b, K)
    weights = masked_softmax(dense @ k.mT, real[:, None, None])
    rows = drop(weights, dropout) @ v
    middle = output[:, :, 1 : num_blocks - len(ends) + 1].flatten(2, 3)
    output = torch.cat([rows[..., :size, :], middle, rows[..., size:, :]], -2)
    return output[..., :length, :]


class BigBird(nn.Module):
    """Multi-head block-sparse attention: window, first and last block, and random blocks.

    Args:
        shape: Sizes, attention dropout and biases; `shape.max_length` decides the last block.
        block_size: Tokens per block.
        random_blocks: Random blocks that each block attends to.
        seed: Of the random blocks, which are drawn once and kept; all layers have the same.

    Raises:
        ValueError: If an option is out of range.
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
    ) -> None:
        super().__init__()
        at_least(1, block_size=block_size)
        at_least(0, random_blocks=random_blocks)
        a_seed(seed)
        self.projections = HeadProjections(shape)
        self.dropout = shape.dropout
        self.block_size = block_size
        num_blocks = -(-shape.max_length // block_size)
        blocks, counts = attended_blocks(shape.heads, num_blocks, random_blocks, seed)
        self.blocks: Tensor
        self.counts: Tensor
        self.register_buffer("blocks", blocks)
        self.register_buffer("counts", counts)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend over the real positions of `x` `(B, N, D)`; `mask` `(B, N)` bool or None."""
        q, k, v = self.projections.split(x, mask)
        dropout = self.dropout if self.training else 0.0
        pattern = (self.blocks, self.counts, self.block_size)
        return self.projections.merge(block_attention(q, k, v, mask, *pattern, dropout))

    def reference(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute `forward` by the plain form, without dropout."""
        q, k, v = self.projections.split(x, mask)
        pattern = (self.blocks, self.counts, self.block_size)
        return self.projections.merge(block_attention_reference(q, k, v, mask, *pattern))
