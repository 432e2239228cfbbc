"""Attention over selected pairs of blocks, fast on the CPU: one operator with its own backward.

What `models/mra.py` attends to is fixed by then; here it is computed. The plain form of the same
function is `models.mra.gathered_attention`. What makes this one fast:

* Query blocks are sorted by how many key blocks they selected and taken in chunks of equal count,
  so that the keys of a query block are one wide matrix product without padding.
* Chunks stay in the cache; the backward recomputes the weights from the stored log-sum-exp.
* `exp2` costs a third of `exp`, so logarithms here are to base 2, and log2(e) is in the scale.
* Heads are shared out among Python threads that use one core each. Threads inside each of many
  small operations would wait for each other at every one of them, and for a whole time slice
  whenever another process holds a core.

Axes: B batch, H heads, N length, K head width; X query blocks, Y key blocks, b tokens a block,
G heads of one slice, R query blocks of one chunk, c selected key blocks of each.
"""

import math
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Stands for minus infinity, so that no difference of two of them is NaN.
FLOOR = -1e30
LOG2_E = math.log2(math.e)
# 96 block pairs of 32 x 32 logits, two such tiles and their keys and values: about a second-level
# cache. Slices of some 256 query blocks keep their keys and values near it too.
PAIRS_A_CHUNK = 96
BLOCKS_A_SLICE = 256


@cache
def _workers(process: int, threads: int) -> ThreadPoolExecutor:
    """Start `threads` Python threads whose operations use one core each (a pool a process)."""
    barrier = threading.Barrier(threads + 1)

    def start() -> None:
        # Torch copies its thread count to a thread on first use; only what is set after that
        # stays this thread's own.
        torch.get_num_threads()
        torch.set_num_threads(1)
        barrier.wait()

    pool = ThreadPoolExecutor(threads, "mra")
    for _ in range(threads):
        pool.submit(start)
    barrier.wait()
    # The count that threads yet to come will copy was changed above.
    torch.set_num_threads(threads)
    return pool


def over_heads(run: Callable[[int, int], None], heads: int, num_blocks: int) -> None:
    """Call `run(start, stop)` for slices of the `heads`, on as many threads as torch may use.

    Slices depend on the sizes and the thread count alone, and `run` writes to its own slice of
    tensors made beforehand, so the same thread count gives the same bits.
    """
    threads = min(torch.get_num_threads(), heads)
    size = max(1, min(-(-heads // threads), BLOCKS_A_SLICE // num_blocks))
    slices = [(start, min(start + size, heads)) for start in range(0, heads, size)]
    if threads == 1:
        for start, stop in slices:
            run(start, stop)
        return

    def task(bounds: tuple[int, int]) -> None:
        # Grad mode and the like belong to a thread; inference mode records nothing and may
        # write to tensors of either kind.
        with torch.inference_mode():
            run(*bounds)

    list(_workers(os.getpid(), torch.get_num_threads()).map(task, slices))


def head_blocks(x: Tensor, start: int, stop: int, block_size: int, mask: Tensor | None) -> Tensor:
    """Take heads `start` to `stop` of `x` `(B, H, N, K)` as `(G, X, b, K)`, 0 under the mask."""
    _, heads, length, width = x.shape
    num_blocks = -(-length // block_size)
    if x.is_contiguous() and mask is None and length % block_size == 0:
        return x.view(-1, num_blocks, block_size, width)[start:stop]
    blocks = x.new_zeros(stop - start, num_blocks * block_size, width)
    for i, head in enumerate(range(start, stop)):
        tokens = x[head // heads, head % heads]
        if mask is not None:
            # Not a product: what stands under the mask may be infinite.
            tokens = tokens.masked_fill(~mask[head // heads, :, None], 0.0)
        blocks[i, :length] = tokens
    return blocks.view(-1, num_blocks, block_size, width)


def head_valid(x: Tensor, start: int, stop: int, block_size: int, mask: Tensor | None) -> Tensor:
    """Say which tokens of the blocks of heads `start` to `stop` are real: `(G, X, b)` bool."""
    batch, heads, length, _ = x.shape
    if mask is None:
        mask = torch.ones(1, length, dtype=torch.bool, device=x.device).expand(batch, length)
    of_head = torch.arange(start, stop, device=x.device) // heads
    padded = F.pad(mask[of_head], (0, -length % block_size))
    return padded.view(stop - start, -1, block_size)


def block_means(blocks: Tensor, counts: Tensor) -> Tensor:
    """Average the `counts` `(..., X)` real tokens of blocks `(..., X, b, K)`; 0 without one."""
    return blocks.sum(-2) / counts.clamp(min=1).unsqueeze(-1)


class _Slice(NamedTuple):
    """What the forward and the backward of some heads share."""

    queries: Tensor  # (G X, b, K), sorted, times log2(e) / sqrt(K)
    keys: Tensor  # (G Y, b K)
    values: Tensor  # (G Y, b K)
    valid: Tensor | None  # (G X, b, 1) bool; None if all tokens are real
    order: Tensor  # (G X,), rows sorted by their count
    back: Tensor  # (G X,), the place of each row in that order
    columns: Tensor  # (pairs,), key blocks of the rows in that order
    groups: list[tuple[int, int]]  # (count, rows that have it)
    coarse: "_Coarse | None"


class _Coarse(NamedTuple):
    """The blocks that were not selected, each one item of weight 2^logit: MRA-2's second part."""

    q: Tensor  # (G, X, K), block means
    k: Tensor
    v: Tensor
    counts: Tensor  # (G, X)
    weights: Tensor  # (G, X, Y), softmax over Y
    lse: Tensor  # (G, X), log-sum-exp to base 2, FLOOR where all live blocks were selected


def _coarse(q: Tensor, k: Tensor, v: Tensor, counts: Tensor, left: Tensor) -> _Coarse:
    """Pool blocks `(G, X, b, K)`; `left` `(G, X, Y)` are live pairs that were not selected."""
    means = [block_means(x, counts) for x in (q, k, v)]
    logits = means[0] @ means[1].mT * (LOG2_E / q.shape[-1] ** 0.5)
    logits += counts.clamp(min=1).log2().unsqueeze(-2)
    logits.masked_fill_(~left, FLOOR)
    top = logits.amax(-1, keepdim=True)
    weights = logits.sub_(top).exp2_().mul_(left)
    total = weights.sum(-1, keepdim=True)
    lse = (top + total.clamp(min=1).log2()).squeeze(-1)
    return _Coarse(*means, counts, weights.div_(total.clamp(min=1)), lse)


def _prepare(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pairs: Tensor, block_size: int,
    full: bool, start: int, stop: int,
) -> _Slice:  # fmt: skip
    """Lay out heads `start` to `stop` of the operator's inputs."""
    queries, keys, values = (head_blocks(x, start, stop, block_size, mask) for x in (q, k, v))
    heads, num_blocks, _, width = queries.shape
    valid = head_valid(q, start, stop, block_size, mask)
    counts = valid.sum(-1)
    alive = counts > 0
    live = alive.unsqueeze(-1) & alive.unsqueeze(-2)  # (G, X, Y)
    selected = torch.zeros(heads, num_blocks**2, dtype=torch.bool)
    selected.scatter_(1, pairs.flatten(0, 1)[start:stop], True)
    selected = selected.view_as(live) & live
    coarse = _coarse(queries, keys, values, counts.to(q.dtype), live & ~selected) if full else None

    rows = selected.flatten(0, 1)
    row_counts, order = rows.sum(-1).sort(stable=True)
    places, columns = rows[order].nonzero().unbind(1)
    columns += order[places] // num_blocks * num_blocks
    count_of_group, rows_of_group = row_counts.unique_consecutive(return_counts=True)
    return _Slice(
        queries.flatten(0, 1).index_select(0, order).mul_(LOG2_E / width**0.5),
        keys.reshape(heads * num_blocks, -1),
        values.reshape(heads * num_blocks, -1),
        None if bool(valid.all()) else valid.view(-1, block_size, 1),
        order,
        order.argsort(),
        columns,
        list(zip(count_of_group.tolist(), rows_of_group.tolist(), strict=True)),
        coarse,
    )


class _Chunk(NamedTuple):
    rows: slice  # R sorted rows
    columns: Tensor  # (R c,)
    keys: Tensor  # (R, c b, K)
    values: Tensor  # (R, c b, K)
    logits: Tensor  # (R, c b, b): keys by queries, which the matrix products like better


def _chunks(part: _Slice) -> Iterator[_Chunk]:
    """Gather one chunk of rows after the other, and compute its logits."""
    block_size, width = part.queries.shape[1:]
    most = max([PAIRS_A_CHUNK, *(count for count, _ in part.groups)])
    gathered_keys = part.keys.new_empty(most, block_size * width)
    gathered_values = torch.empty_like(gathered_keys)
    tiles = part.keys.new_empty(most, block_size**2)
    row = pair = 0
    for count, group in part.groups:
        end = row + group
        if count == 0:
            row = end
        while row < end:
            rows = slice(row, min(row + max(1, PAIRS_A_CHUNK // count), end))
            size = (rows.stop - row) * count
            shape = (rows.stop - row, count * block_size)
            columns = part.columns[pair : pair + size]
            keys, values, logits = gathered_keys[:size], gathered_values[:size], tiles[:size]
            torch.index_select(part.keys, 0, columns, out=keys)
            torch.index_select(part.values, 0, columns, out=values)
            keys, values = keys.view(*shape, width), values.view(*shape, width)
            logits = logits.view(*shape, block_size)
            torch.bmm(keys, part.queries[rows].mT, out=logits)
            if part.valid is not None:
                real = part.valid.index_select(0, columns).view(*shape, 1)
                logits.masked_fill_(~real, FLOOR)
            yield _Chunk(rows, columns, keys, values, logits)
            row, pair = rows.stop, pair + size


def _attend_slice(part: _Slice, out: Tensor) -> Tensor:
    """Write the output of one slice to `out` `(G X, b, K)`; return the log-sum-exp `(G X, b)`."""
    total = torch.zeros_like(out)
    top = out.new_full((len(out), 1, out.shape[1]), FLOOR)
    norm = torch.zeros_like(top)
    for chunk in _chunks(part):
        best = top[chunk.rows]
        torch.amax(chunk.logits, 1, keepdim=True, out=best)
        weights = chunk.logits.sub_(best).exp2_()
        torch.sum(weights, 1, keepdim=True, out=norm[chunk.rows])
        torch.bmm(weights.mT, chunk.values, out=total[chunk.rows])
    torch.index_select(total, 0, part.back, out=out)
    top, norm = (x.index_select(0, part.back).squeeze(1) for x in (top, norm))
    if part.coarse is None:
        # A row without a selected key has weight 0 and output 0.
        norm.clamp_(min=torch.finfo(norm.dtype).tiny)
        out.div_(norm.unsqueeze(-1))
        return top.add_(norm.log2_())
    low = part.coarse.lse.view(-1, 1)
    shift = torch.maximum(top, low)
    fine, coarse = top.sub_(shift).exp2_(), (low - shift).exp2_()
    norm.mul_(fine).add_(coarse)
    means = (part.coarse.weights @ part.coarse.v).flatten(0, 1)
    out.mul_(fine.div_(norm).unsqueeze(-1))
    out.addcmul_(coarse.div_(norm).unsqueeze(-1), means.unsqueeze(1))
    return shift.add_(norm.log2_())


def _differentiate_slice(
    part: _Slice, out: Tensor, lse: Tensor, grad: Tensor, grads: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Write the gradients of queries, keys and values to `grads`, each `(G X, b, K)`.

    With P the weights and D_i = grad_i . out_i: dV = P^T grad, dS = P (grad V^T - D),
    dQ = dS K / sqrt(K), dK = dS^T Q / sqrt(K).
    """
    for x in grads[1:]:
        x.zero_()
    grad_k, grad_v = grads[1].flatten(1), grads[2].flatten(1)
    inner = torch.linalg.vecdot(grad, out)  # D, (G X, b)
    sorted_q, sorted_grad = torch.zeros_like(out), grad.index_select(0, part.order)
    sorted_inner, sorted_lse = (x.index_select(0, part.order).unsqueeze(1) for x in (inner, lse))
    tiles = buffer = out.new_empty(0)
    for chunk in _chunks(part):
        if tiles.numel() < chunk.logits.numel():
            size = max(PAIRS_A_CHUNK * out.shape[1] ** 2, chunk.logits.numel())
            tiles, buffer = out.new_empty(size), out.new_empty(size * out.shape[2] // out.shape[1])
        rows = chunk.rows
        out_grad, queries = sorted_grad[rows], part.queries[rows]
        logits = tiles[: chunk.logits.numel()].view_as(chunk.logits)
        gathered = buffer[: chunk.keys.numel()].view_as(chunk.keys)
        flat = gathered.view(len(chunk.columns), -1)
        weights = chunk.logits.sub_(sorted_lse[rows]).exp2_()
        torch.bmm(weights, out_grad, out=gathered)
        grad_v.index_add_(0, chunk.columns, flat)
        torch.bmm(chunk.values, out_grad.mT, out=logits)
        logits.sub_(sorted_inner[rows]).mul_(weights)
        torch.bmm(logits.mT, chunk.keys, out=sorted_q[rows])
        torch.bmm(logits, queries, out=gathered)
        grad_k.index_add_(0, chunk.columns, flat)
    torch.index_select(sorted_q, 0, part.back, out=grads[0])
    grads[0].mul_(grad.shape[-1] ** -0.5)
    # The sorted queries hold log2(e) besides the scale.
    grad_k.div_(LOG2_E)
    if part.coarse is not None:
        means = _differentiate_coarse(part.coarse, lse, grad, inner)
        for x, mean in zip(grads, means, strict=True):
            x.add_(mean.flatten(0, 1).unsqueeze(1))


def _differentiate_coarse(
    coarse: _Coarse, lse: Tensor, grad: Tensor, inner: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient that each token of a block gets through the means, `(G, X, K)` each."""
    share = torch.exp2(coarse.lse.view(-1, 1) - lse).unsqueeze(1)  # (G X, 1, b)
    pooled = (share @ grad).view_as(coarse.q)
    pooled_inner = (share @ inner.unsqueeze(-1)).view(*coarse.lse.shape, 1)
    scale = coarse.q.shape[-1] ** -0.5
    logits = coarse.weights * (pooled @ coarse.v.mT - pooled_inner) * scale  # (G, X, Y)
    counts = coarse.counts.clamp(min=1).unsqueeze(-1)
    return (
        logits @ coarse.k / counts,
        logits.mT @ coarse.q / counts,
        coarse.weights.mT @ pooled / counts,
    )


class _Rows:
    """The block rows of some heads of a contiguous result, to be filled and then stored."""

    def __init__(self, result: Tensor, start: int, stop: int, block_size: int) -> None:
        _, _, length, width = result.shape
        self.target = result.flatten(0, 1)[start:stop]
        if length % block_size == 0:
            self.blocks = self.target.view(-1, block_size, width)
        else:
            padded = -(-length // block_size) * block_size
            self.blocks = result.new_empty(stop - start, padded, width).view(-1, block_size, width)

    def store(self, valid: Tensor | None) -> None:
        """Put 0 where `valid` is False, and copy what is not in place."""
        if valid is not None:
            self.blocks.masked_fill_(~valid, 0.0)
        heads, length, width = self.target.shape
        if self.blocks.data_ptr() != self.target.data_ptr():
            self.target.copy_(self.blocks.view(heads, -1, width)[:, :length])


@torch.library.custom_op("long_range_arena::attend_blocks", mutates_args=())
def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pairs: Tensor, block_size: int, full: bool
) -> tuple[Tensor, Tensor]:
    heads = q.shape[0] * q.shape[1]
    num_blocks = -(-q.shape[2] // block_size)
    out = q.new_empty(q.shape)
    lse = q.new_empty(heads, num_blocks, block_size)

    def run(start: int, stop: int) -> None:
        part = _prepare(q, k, v, mask, pairs, block_size, full, start, stop)
        rows = _Rows(out, start, stop, block_size)
        lse[start:stop] = _attend_slice(part, rows.blocks).view_as(lse[start:stop])
        rows.store(part.valid)

    over_heads(run, heads, num_blocks)
    return out, lse


@_attend.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pairs: Tensor, block_size: int, full: bool
) -> tuple[Tensor, Tensor]:
    num_blocks = -(-q.shape[2] // block_size)
    return q.new_empty(q.shape), q.new_empty(q.shape[0] * q.shape[1], num_blocks, block_size)


@torch.library.custom_op("long_range_arena::attend_blocks_backward", mutates_args=())
def _attend_backward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pairs: Tensor, out: Tensor, lse: Tensor,
    grad: Tensor, block_size: int, full: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grads = q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)

    def run(start: int, stop: int) -> None:
        part = _prepare(q, k, v, mask, pairs, block_size, full, start, stop)
        out_rows, grad_rows = (
            head_blocks(x, start, stop, block_size, mask).flatten(0, 1) for x in (out, grad)
        )
        rows = [_Rows(x, start, stop, block_size) for x in grads]
        norms = lse[start:stop].flatten(0, 1)
        blocks = rows[0].blocks, rows[1].blocks, rows[2].blocks
        _differentiate_slice(part, out_rows, norms, grad_rows, blocks)
        for x in rows:
            x.store(part.valid)

    over_heads(run, lse.shape[0], lse.shape[1])
    return grads


@_attend_backward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pairs: Tensor, out: Tensor, lse: Tensor,
    grad: Tensor, block_size: int, full: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)


def _save(ctx, inputs, output) -> None:
    q, k, v, mask, pairs, ctx.block_size, ctx.full = inputs
    ctx.save_for_backward(q, k, v, mask, pairs, *output)


def _backward(ctx, grad: Tensor, _: Tensor | None):
    grads = _attend_backward(*ctx.saved_tensors, grad, ctx.block_size, ctx.full)
    return *grads, None, None, None, None


_attend.register_autograd(_backward, setup_context=_save)


def attend_blocks(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pairs: Tensor, block_size: int, full: bool
) -> Tensor:
    """Attend to the selected pairs of blocks, and to the means of the others if `full`.

    Args:
        q: Queries `(B, H, N, K)`, on the CPU, float32 or float64, of any strides.
        k: Keys, alike.
        v: Values, alike.
        mask: `(B, N)` bool, True for real tokens; None when all are.
        pairs: Selected pairs `(B, H, M)`, each query block times number of blocks plus key block.
        block_size: Tokens a block.
        full: MRA-2 if True, MRA-2-s if False.

    Returns:
        `(B, H, N, K)`.
    """
    out: Tensor = _attend(q, k, v, mask, pairs, block_size, full)[0]
    return out
