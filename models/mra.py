"""MRA attention at two resolutions (Zeng et al. 2022, arXiv 2207.10284): MRA-2 and MRA-2-s.

The logits of the pairs of blocks that matter most are computed exactly. In every other block of the
matrix, MRA-2 uses the mean of the logits, and MRA-2-s nothing. The means decide which pairs matter,
with one budget for a whole head.

Arithmetic is in float32, or in float64 for float64 inputs, even under autocast. On the CPU, the
attention is one opaque operator (`models/mra_blocks.py`) with first derivatives only, so that
`torch.compile` keeps one graph; its first call compiles for a few seconds, and later processes find
the result on disk. Elsewhere it is `gathered_attention`, which never waits for the device.

Axes: B batch, H heads, N length, K head width, D model width; X query blocks, Y key blocks,
b tokens per block, M selected pairs per head.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.heads import AttentionShape, HeadProjections
from models.mra_blocks import (
    FLOOR,
    attend_blocks,
    block_means,
    head_blocks,
    heads_a_slice,
    live_pairs,
    selected_map,
    to_blocks,
    valid_tokens,
)
from models.options import at_least, one_of
from models.precision import full_precision, without_autocast
from models.threads import over_heads

log = logging.getLogger(__name__)

# Far below the differences of scores, and above their rounding.
TIE = 1e-11

Mode = Literal["full", "sparse"]
RowMax = Literal["official", "live"]
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which pairs of blocks a head computes exactly.

    Args:
        num_blocks: Number of pairs of blocks M, at least 1; clipped to the number of all pairs. If
            it is at least the number of blocks plus that of the pairs that the priors prefer, every
            row has its best block.
        first_blocks: Number of block rows and columns at the start to prefer.
        diagonal_blocks: Number of blocks about the diagonal to prefer; 2 and 3 both reach one block
            to each side.
        block_size: Tokens per block.
        row_max: Blocks are compared by their distance from the best block of their row. "official"
            includes blocks of padding in that maximum, with logit 0; "live" does not.
        padded_length: Length to which trimmed inputs would be padded, at least their own: the
            selection is the one that padded inputs would get. None for the inputs' own length.

    Raises:
        ValueError: An option is out of range.
    """

    num_blocks: int
    first_blocks: int = 0
    diagonal_blocks: int = 0
    block_size: int = 32
    row_max: RowMax = "official"
    padded_length: int | None = None

    def __post_init__(self) -> None:
        at_least(1, num_blocks=self.num_blocks, block_size=self.block_size)
        at_least(0, first_blocks=self.first_blocks, diagonal_blocks=self.diagonal_blocks)
        one_of(get_args(RowMax), row_max=self.row_max)

    @property
    def needed(self) -> int:
        """Number of pairs with which every row has its best block; 0 without a padded length."""
        if self.padded_length is None:
            return 0
        rows = -(-self.padded_length // self.block_size)
        others = max(0, rows - self.first_blocks)
        if not self.diagonal_blocks:
            far = others**2
        else:
            # Pairs further from the diagonal than it reaches, on both of its sides.
            beyond = max(0, others - self.diagonal_blocks // 2)
            far = beyond * max(0, beyond - 1)
        return min(rows + rows**2 - far, rows**2)

    def padding_follows(self, blocks: int) -> bool:
        """Return whether blocks of padding would follow the given number of blocks."""
        return self.padded_length is not None and self.padded_length > blocks * self.block_size


def block_scores(q_means: Tensor, k_means: Tensor, alive: Tensor, selection: Selection) -> Tensor:
    """Score each pair of blocks by its mean logit relative to the row's best, plus priors.

    Args:
        q_means: Block means of the queries `(..., X, K)`.
        k_means: Block means of the keys `(..., Y, K)`.
        alive: `(..., X)` bool, True for blocks with a real token.
        selection: The priors, and what counts in a row's maximum.

    Returns:
        `(..., X, Y)` float64: in float32 the priors would blur the differences.
    """
    logits = q_means @ k_means.mT / q_means.shape[-1] ** 0.5  # (..., X, Y)
    dead = ~(alive.unsqueeze(-1) & alive.unsqueeze(-2))
    logits = logits.masked_fill(dead, 0.0)
    if selection.row_max == "official":
        top = logits.amax(-1, keepdim=True)
        top = top.clamp(min=0.0) if selection.padding_follows(alive.shape[-1]) else top
    else:
        top = logits.masked_fill(dead, FLOOR).amax(-1, keepdim=True)
        top = top.masked_fill(~alive.unsqueeze(-1), 0.0)
    block = torch.arange(alive.shape[-1], device=alive.device)
    diagonal = selection.diagonal_blocks
    near = (block[:, None] - block).abs() <= diagonal // 2
    preferred = (block < selection.first_blocks).double()
    prior = preferred[:, None] + preferred + (near.double() if diagonal else 0.0)
    scores: Tensor = (logits - top).double() - 1e4 * dead + 5e3 * prior
    return scores


def select_blocks(q: Tensor, k: Tensor, mask: Tensor | None, selection: Selection) -> Tensor:
    """Select the pairs of blocks that each head computes exactly; arguments as in `mra_attention`.

    Returns:
        `(B, H, M)` int64, each pair encoded as query block times number of blocks plus key block; M
        is `selection.num_blocks`, or the number of all pairs if there are fewer. Pairs without a
        real query or key are chosen last, but count towards M.
    """
    batch, heads, length, _ = q.shape
    size = selection.block_size
    blocks = -(-length // size)
    num_pairs = min(selection.num_blocks, blocks**2)
    counts = valid_tokens(q, mask, size).sum(-1)  # (G, X)

    def best(q_blocks: Tensor, k_blocks: Tensor, counts: Tensor) -> Tensor:
        q_means, k_means = (block_means(each, counts) for each in (q_blocks, k_blocks))
        scores = block_scores(q_means, k_means, counts > 0, selection)
        if selection.num_blocks < selection.needed:
            # The best blocks of all rows are equally good, and topk's choice among them would
            # depend on the number of blocks, and so on padding: earlier rows come first.
            rows = torch.arange(scores.shape[1], dtype=scores.dtype, device=scores.device)
            scores = scores - TIE * rows[:, None]
        return scores.flatten(1).topk(num_pairs, sorted=False).indices

    with torch.no_grad():
        if q.device.type != "cpu" or torch.compiler.is_compiling():
            pairs = best(to_blocks(q, size, mask), to_blocks(k, size, mask), counts)
        else:
            pairs = torch.empty(batch * heads, num_pairs, dtype=torch.int64, device=q.device)

            def run(start: int, stop: int) -> None:
                q_blocks, k_blocks = (head_blocks(x, start, stop, size, mask) for x in (q, k))
                pairs[start:stop] = best(q_blocks, k_blocks, counts[start:stop])

            over_heads(run, batch * heads, heads_a_slice(batch * heads, blocks))
    return pairs.view(batch, heads, num_pairs)


def mra_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, selection: Selection, mode: Mode = "full"
) -> Tensor:
    """Compute MRA-2 or MRA-2-s attention (sections 4.1 to 4.3 of arXiv 2207.10284).

    This is softmax attention with the logits q_i . k_j / sqrt(K) in the selected pairs of blocks.
    In all others, each logit is the mean of its block ("full") or minus infinity ("sparse").

    Args:
        q: Queries `(B, H, N, K)`.
        k: Keys `(B, H, N, K)`.
        v: Values `(B, H, N, K)`.
        mask: `(B, N)` bool, True for real tokens; None when all are. Other tokens are not keys,
            and their outputs are 0.
        selection: Which pairs of blocks are computed exactly.
        mode: "full" for MRA-2, "sparse" for MRA-2-s, where the output of a query without a
            selected key is 0.

    Returns:
        `(B, H, N, K)`, of the dtype of `q`.

    Raises:
        ValueError: `mode` is not one of these, or the shapes do not match.
    """
    one_of(get_args(Mode), mode=mode)
    _check(q, k, v, mask, selection.padded_length)
    if q.numel() == 0:
        return q + k + v
    dtype = q.dtype
    with without_autocast(q):
        q, k, v = full_precision(q), full_precision(k), full_precision(v)
        pairs = select_blocks(q, k, mask, selection)
        attend = attend_blocks if q.device.type == "cpu" else gathered_attention
        return attend(q, k, v, mask, pairs, selection.block_size, mode == "full").to(dtype)


def _check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, padded_length: int | None) -> None:
    if q.ndim != 4 or q.shape != k.shape or q.shape != v.shape:
        shapes = [tuple(x.shape) for x in (q, k, v)]
        raise ValueError(f"q, k and v must have the same shape (B, H, N, K), not {shapes}")
    if mask is not None and (mask.shape != (q.shape[0], q.shape[2]) or mask.dtype != torch.bool):
        raise ValueError(
            f"mask must be bool of shape (B, N) = {(q.shape[0], q.shape[2])}, "
            f"not {mask.dtype} of {tuple(mask.shape)}"
        )
    if padded_length is not None and padded_length < q.shape[2]:
        raise ValueError(
            f"padded_length={padded_length}: must be at least the length of the inputs,"
            f" {q.shape[2]}"
        )


def gathered_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pairs: Tensor, block_size: int, full: bool
) -> Tensor:
    """Compute `attend_blocks` on any device, differentiated by autograd.

    Every selected pair is gathered, multiplied, and added to its block row. No shape depends on the
    contents, so nothing waits for the device. On CUDA, `index_add` adds in no fixed order.
    """
    batch, heads, length, width = q.shape
    total_heads = batch * heads
    Q, K, V = (to_blocks(x, block_size, mask) for x in (q, k, v))
    valid = valid_tokens(q, mask, block_size)  # (G, X, b)
    blocks = valid.shape[1]
    counts = valid.sum(-1)
    selected = selected_map(pairs, counts)
    left = live_pairs(counts) & ~selected  # (G, X, Y)

    pairs = pairs.flatten(0, 1)
    first = torch.arange(0, total_heads * blocks, blocks, device=q.device).unsqueeze(-1)
    row, column = (pairs // blocks + first).flatten(), (pairs % blocks + first).flatten()
    keys, values = (x.flatten(0, 1).index_select(0, column) for x in (K, V))
    queries = Q.flatten(0, 1).index_select(0, row)
    logits = queries @ keys.mT / width**0.5  # (G M, b, b)
    real = valid.flatten(0, 1).index_select(0, column).unsqueeze(1)
    logits = logits.masked_fill(~real, FLOOR)
    best = logits.detach().amax(-1)
    top = best.new_full((total_heads * blocks, block_size), FLOOR)
    top = top.scatter_reduce(0, row.unsqueeze(-1).expand_as(best), best, "amax")
    if full:
        means = [block_means(x, counts) for x in (Q, K, V)]
        coarse = means[0] @ means[1].mT / width**0.5 + counts.clamp(min=1).to(
            q.dtype
        ).log().unsqueeze(-2)
        coarse = coarse.masked_fill(~left, FLOOR)
        coarse_top = coarse.detach().amax(-1, keepdim=True)  # (G, X, 1)
        top = torch.maximum(top, coarse_top.view(-1, 1))
    weights = (logits - top.index_select(0, row).unsqueeze(-1)).exp().masked_fill(~real, 0.0)
    norm = torch.zeros_like(top).index_add(0, row, weights.sum(-1))
    out = torch.zeros_like(Q).flatten(0, 1).index_add(0, row, weights @ values)
    if full:
        coarse = (coarse - coarse_top).exp().masked_fill(~left, 0.0)
        share = (coarse_top.view(-1, 1) - top).exp()  # (G X, b)
        norm = norm + share * coarse.sum(-1).view(-1, 1)
        out = out + share.unsqueeze(-1) * (coarse @ means[2]).view(-1, 1, width)
    out = out / norm.where(norm > 0, 1.0).unsqueeze(-1)
    out = out.view(total_heads, -1, width)[:, :length].view(q.shape)
    return out if mask is None else out.masked_fill(~mask[:, None, :, None], 0.0)


def mra_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, selected: Tensor, *, mode: Mode = "full",
    block_size: int = 32,
) -> Tensor:  # fmt: skip
    """Compute `mra_attention` with all `(N, N)` logits written out: the definition.

    Args:
        q: Queries `(B, H, N, K)`.
        k: Keys of the same shape.
        v: Values of the same shape.
        mask: `(B, N)` bool or None.
        selected: `(B, H, X, Y)` bool, the pairs of blocks computed exactly.
        mode: "full" for MRA-2, "sparse" for MRA-2-s.
        block_size: Tokens per block.

    Returns:
        `(B, H, N, K)`.
    """
    batch, heads, length, width = q.shape
    if mask is None:
        mask = torch.ones(batch, length, dtype=torch.bool, device=q.device)
    real = mask[:, None, :, None]
    q, k, v = (x.masked_fill(~real, 0.0) for x in (q, k, v))
    block = torch.arange(length, device=q.device) // block_size
    member = F.one_hot(block, selected.shape[-1]).to(q) * mask.unsqueeze(-1)  # (B, N, X)
    average = (member / member.sum(1, keepdim=True).clamp(min=1)).mT.unsqueeze(1)
    logits = q @ k.mT / width**0.5  # (B, H, N, N)
    means = (average @ logits @ average.mT)[..., block, :][..., block]
    exact = selected[..., block, :][..., block]
    seen = mask[:, None, None, :].expand_as(exact)
    seen = seen if mode == "full" else seen & exact
    logits = torch.where(exact, logits, means)
    weights = logits.masked_fill(~seen, FLOOR).softmax(-1).masked_fill(~seen, 0.0)
    return (weights @ v).masked_fill(~real, 0.0)


class MRA(nn.Module):
    """Multi-head MRA-2 attention.

    The published form has no dropout on the attention weights, so `shape.dropout` is not used.

    Args:
        shape: Sizes and biases; `shape.max_length` fixes the budget, so a trimmed sequence gives
            the same result as the padded one.
        blocks_per_row: Pairs of blocks computed exactly per block row, on average.
        first_blocks: Number of block rows and columns at the start to prefer.
        diagonal_blocks: Number of blocks about the diagonal to prefer.
        block_size: Tokens per block.
        row_max: Whether padding counts in a row's maximum; see `Selection`.
        input_shape: Height and width of an image that the sequence holds row by row; its blocks
            then become tiles. None for a true sequence.
        tile: Height and width of a tile in pixels; a tile has `block_size` pixels.

    Raises:
        ValueError: An option is out of range, or tiles do not fit the image, the block size or the
            length.
    """

    mode: ClassVar[Mode] = "full"

    def __init__(
        self,
        shape: AttentionShape,
        *,
        blocks_per_row: int = 8,
        first_blocks: int = 0,
        diagonal_blocks: int = 0,
        block_size: int = 32,
        row_max: RowMax = "official",
        input_shape: tuple[int, int] | None = None,
        tile: tuple[int, int] = (4, 8),
    ) -> None:
        super().__init__()
        at_least(1, blocks_per_row=blocks_per_row, block_size=block_size)
        if input_shape is not None:
            _check_tiles(input_shape, tile, block_size, shape.max_length)
        rows = -(-shape.max_length // block_size)
        self.selection = Selection(
            num_blocks=blocks_per_row * rows,
            first_blocks=first_blocks,
            diagonal_blocks=diagonal_blocks,
            block_size=block_size,
            row_max=row_max,
            padded_length=shape.max_length,
        )
        _warn_of_a_short_budget(self.selection, rows)
        self.input_shape = input_shape
        self.tile = tile
        self.projections = HeadProjections(shape)

    @property
    def pad_invariant(self) -> bool:
        """Whether the amount of padding changes nothing: not so if the sequence is an image."""
        return self.input_shape is None

    @property
    def memory_growth(self) -> int | None:
        """The power of N, if the map of pairs of blocks, (N / b)^2, is small beside the rest."""
        return 1 if self.selection.block_size >= 32 else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend over the real positions of `x` `(B, N, D)`; `mask` `(B, N)` bool or None."""
        return self._in_tiles(self._attend, x, mask)

    def reference(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute `forward` in its plain form, for the pairs of blocks that it selects."""
        return self._in_tiles(self._attend_reference, x, mask)

    def _in_tiles(self, attend: Attend, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.input_shape is None:
            return self.projections.merge(attend(*self.projections.split(x, mask), mask))
        order = tile_order(self.input_shape, self.tile, x.device)
        mask = None if mask is None else mask[:, order]
        out = self.projections.merge(attend(*self.projections.split(x[:, order], mask), mask))
        return out[:, order.argsort()]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return mra_attention(q, k, v, mask, self.selection, self.mode)

    def _attend_reference(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        size = self.selection.block_size
        pairs = select_blocks(q, k, mask, self.selection)
        counts = valid_tokens(q, mask, size).sum(-1)
        selected = selected_map(pairs, counts)
        selected = selected.view(*q.shape[:2], *selected.shape[1:])
        return mra_attention_reference(q, k, v, mask, selected, mode=self.mode, block_size=size)


class MRASparse(MRA):
    """Multi-head MRA-2-s attention: MRA-2 without the blocks that were not selected."""

    mode = "sparse"


def tile_order(
    input_shape: tuple[int, int], tile: tuple[int, int], device: torch.device | None = None
) -> Tensor:
    """Return an image's pixels `(N,)`, numbered row by row, in the order of its tiles."""
    (height, width), (rows, columns) = input_shape, tile
    pixels = torch.arange(height * width, device=device)
    tiles = pixels.view(height // rows, rows, width // columns, columns).transpose(1, 2)
    return tiles.flatten()


def _warn_of_a_short_budget(selection: Selection, rows: int) -> None:
    """Warn if priors may leave some row without its best block."""
    if selection.num_blocks < (needed := selection.needed):
        log.warning(
            "blocks_per_row=%d gives %d pairs, fewer than the %d preferred ones plus one for each "
            "of %d rows: some rows may have no exact block; blocks_per_row=%d would be enough",
            selection.num_blocks // rows, selection.num_blocks, needed - rows, rows,
            -(-needed // rows),
        )  # fmt: skip


def _check_tiles(
    input_shape: tuple[int, int], tile: tuple[int, int], block_size: int, max_length: int
) -> None:
    for key, sides in (("input_shape", input_shape), ("tile", tile)):
        if min(sides) < 1:
            raise ValueError(f"{key}={sides}: sides must be at least 1")
    if tile[0] * tile[1] != block_size:
        raise ValueError(f"tile={tile}: must have block_size={block_size} pixels")
    if input_shape[0] % tile[0] or input_shape[1] % tile[1]:
        raise ValueError(f"input_shape={input_shape}: must divide into whole tiles of {tile}")
    if input_shape[0] * input_shape[1] != max_length:
        raise ValueError(f"input_shape={input_shape}: must hold max_length={max_length} pixels")
