"""Attention over selected pairs of blocks, fast on the CPU: one operator with its own backward.

What `models/mra.py` attends to is fixed by then; here it is computed. The plain form of the same
function is `models.mra.gathered_attention`. What makes this one fast:

* Query blocks are sorted by how many key blocks they selected and taken in chunks of equal count,
  so that a chunk is dense attention without padding: torch's own fused kernel, forward and
  backward. Its backward takes the weights from whatever log-sum-exp it is given, so that of the
  merged softmax makes it exact.
* Heads are shared out among Python threads that use one core each. Threads inside each of many
  small operations would wait for each other at every one of them, and for a whole time slice
  whenever another process holds a core.

Axes: B batch, H heads, N length, K head width; X query blocks, Y key blocks, b tokens a block,
G heads of one slice, R query blocks of one chunk, c selected key blocks of each.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Stands for minus infinity, so that no difference of two of them is NaN.
FLOOR = -1e30
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


def live_pairs(counts: Tensor) -> Tensor:
    """Say which pairs of blocks have a real query and a real key: `(..., X, Y)` bool."""
    alive = counts > 0
    return alive.unsqueeze(-1) & alive.unsqueeze(-2)


class _Slice(NamedTuple):
    """What the forward and the backward of some heads share."""

    queries: Tensor  # (G X, b K)
    keys: Tensor  # (G Y, b K)
    values: Tensor  # (G Y, b K)
    valid: Tensor | None  # (G X, b) bool; None if all tokens are real
    counts: Tensor  # (G, X), real tokens
    selected: Tensor  # (G, X, Y) bool, pairs without a real query or key left out
    order: Tensor  # (G X,), rows sorted by how many pairs they selected
    columns: Tensor  # (pairs,), key blocks of the rows in that order
    groups: list[tuple[int, int]]  # (pairs a row, rows that have so many)


def _prepare(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pairs: Tensor, block_size: int,
    start: int, stop: int,
) -> _Slice:  # fmt: skip
    """Lay out heads `start` to `stop` of the operator's inputs."""
    queries, keys, values = (
        head_blocks(x, start, stop, block_size, mask).flatten(0, 1).flatten(1) for x in (q, k, v)
    )
    valid = head_valid(q, start, stop, block_size, mask)
    counts = valid.sum(-1)
    heads, num_blocks = counts.shape
    selected = torch.zeros(heads, num_blocks**2, dtype=torch.bool)
    selected.scatter_(1, pairs.flatten(0, 1)[start:stop], True)
    selected = selected.view(heads, num_blocks, num_blocks) & live_pairs(counts)
    rows = selected.flatten(0, 1)
    row_counts, order = rows.sum(-1).sort(stable=True)
    places, columns = rows[order].nonzero().unbind(1)
    columns += order[places] // num_blocks * num_blocks
    pairs_of_group, rows_of_group = row_counts.unique_consecutive(return_counts=True)
    groups = list(zip(pairs_of_group.tolist(), rows_of_group.tolist(), strict=True))
    mixed = None if bool(valid.all()) else valid.flatten(0, 1)
    return _Slice(queries, keys, values, mixed, counts, selected, order, columns, groups)


class _Chunk(NamedTuple):
    """Dense attention of R query blocks to c key blocks each."""

    rows: slice  # of the sorted rows
    columns: Tensor  # (R c,)
    keys: Tensor  # (R, 1, c b, K)
    values: Tensor  # (R, 1, c b, K)
    bias: Tensor | None  # (R, 1, 1, c b), FLOOR for keys that are not real


def _chunks(part: _Slice, block_size: int) -> Iterator[_Chunk]:
    """Gather the keys and values of one chunk after the other, in the same two buffers."""
    most = max([PAIRS_A_CHUNK, *(count for count, _ in part.groups)])
    gathered_keys = part.keys.new_empty(most, part.keys.shape[1])
    gathered_values = torch.empty_like(gathered_keys)
    row = pair = 0
    for count, group in part.groups:
        end = row + group
        if count == 0:
            row = end
        while row < end:
            rows = slice(row, min(row + max(1, PAIRS_A_CHUNK // count), end))
            size = (rows.stop - row) * count
            columns = part.columns[pair : pair + size]
            keys, values = gathered_keys[:size], gathered_values[:size]
            torch.index_select(part.keys, 0, columns, out=keys)
            torch.index_select(part.values, 0, columns, out=values)
            shape = (rows.stop - row, 1, count * block_size)
            bias = None
            if part.valid is not None:
                bias = keys.new_zeros(size, block_size)
                bias = bias.masked_fill_(~part.valid.index_select(0, columns), FLOOR)
                bias = bias.view(shape[0], 1, 1, shape[2])
            yield _Chunk(rows, columns, keys.view(*shape, -1), values.view(*shape, -1), bias)
            row, pair = rows.stop, pair + size


def _attend_fine(part: _Slice, block_size: int) -> tuple[Tensor, Tensor]:
    """Attend to the selected blocks: `(G X, b, K)`, and the log-sum-exp `(G X, b)`."""
    queries = part.queries.index_select(0, part.order).unflatten(1, (1, block_size, -1))
    empty = sum(group for count, group in part.groups if count == 0)
    outs = [torch.zeros_like(queries[:empty])]
    norms = [queries.new_full((empty, 1, block_size), FLOOR)]
    for chunk in _chunks(part, block_size):
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            queries[chunk.rows], chunk.keys, chunk.values, attn_mask=chunk.bias
        )
        outs.append(out)
        norms.append(lse)
    back = part.order.argsort()
    out, lse = (torch.cat(x).squeeze(1).index_select(0, back) for x in (outs, norms))
    return out, lse


def _differentiate_fine(
    part: _Slice, out: Tensor, lse: Tensor, grad: Tensor, grads: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Write what queries, keys and values get through selected blocks to `grads` `(G X, b, K)`."""
    block_size = out.shape[1]
    queries, outs, out_grads = (
        x.flatten(1).index_select(0, part.order).unflatten(1, (1, block_size, -1))
        for x in (part.queries, out, grad)
    )
    norms = lse.index_select(0, part.order).unsqueeze(1)
    empty = sum(group for count, group in part.groups if count == 0)
    sorted_grads = [torch.zeros_like(queries[:empty])]
    grad_k, grad_v = (x.zero_().flatten(1) for x in grads[1:])
    for chunk in _chunks(part, block_size):
        rows, columns = chunk.rows, chunk.columns
        to_q, to_k, to_v = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            out_grads[rows], queries[rows], chunk.keys, chunk.values, outs[rows], norms[rows],
            0.0, False, attn_mask=chunk.bias,
        )  # fmt: skip
        sorted_grads.append(to_q)
        grad_k.index_add_(0, columns, to_k.reshape(len(columns), -1))
        grad_v.index_add_(0, columns, to_v.reshape(len(columns), -1))
    back = part.order.argsort()
    torch.index_select(torch.cat(sorted_grads).flatten(1), 0, back, out=grads[0].flatten(1))


class _Coarse(NamedTuple):
    """The live blocks that were not selected, each one item of logit L_xy + log c_y."""

    weights: Tensor  # (G, X, Y), softmax over Y
    lse: Tensor  # (G X, 1), FLOOR where all live blocks were selected


def _attend_coarse(part: _Slice, means: Tensor) -> _Coarse:
    """Weigh the blocks by their means `(3, G, X, K)` of queries, keys and values."""
    left = live_pairs(part.counts) & ~part.selected
    logits = means[0] @ means[1].mT / means.shape[-1] ** 0.5  # (G, X, Y)
    logits += part.counts.clamp(min=1).to(logits.dtype).log().unsqueeze(-2)
    logits.masked_fill_(~left, FLOOR)
    lse = logits.logsumexp(-1, keepdim=True)
    weights = logits.sub_(lse).exp_().mul_(left)
    return _Coarse(weights, lse.view(-1, 1))


def _differentiate_coarse(
    part: _Slice, means: Tensor, out: Tensor, lse: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what each token of a block gets through the means, `(G X, 1, K)` each.

    With w the share of the coarse part in a query's softmax and D_i = grad_i . out_i,
    U_x = sum of w_i grad_i, T_x = sum of w_i D_i: dL = W (U vm^T - T), dvm = W^T U,
    dqm = dL km / sqrt(K), dkm = dL^T qm / sqrt(K).
    """
    coarse = _attend_coarse(part, means)
    heads, num_blocks, width = means.shape[1:]
    share = (coarse.lse - lse).exp_().unsqueeze(1)  # (G X, 1, b)
    inner = torch.linalg.vecdot(grad, out).unsqueeze(-1)
    pooled = (share @ grad).view(heads, num_blocks, width)
    logits = pooled @ means[2].mT - (share @ inner).view(heads, num_blocks, 1)
    logits *= coarse.weights / width**0.5
    counts = part.counts.clamp(min=1).unsqueeze(-1)
    to_q, to_k = logits @ means[1] / counts, logits.mT @ means[0] / counts
    to_v = coarse.weights.mT @ pooled / counts
    return to_q.view(-1, 1, width), to_k.view(-1, 1, width), to_v.view(-1, 1, width)


class _Rows:
    """The block rows of some heads of a contiguous result, to be filled and then stored."""

    def __init__(self, result: Tensor, start: int, stop: int, block_size: int) -> None:
        _, _, length, width = result.shape
        self.target = result.flatten(0, 1)[start:stop]
        self.in_place = length % block_size == 0
        padded = -(-length // block_size) * block_size
        rows = self.target if self.in_place else result.new_empty(stop - start, padded, width)
        self.blocks = rows.view(-1, block_size, width)

    def store(self, valid: Tensor | None) -> None:
        """Put 0 where `valid` `(G X, b)` is False, and copy what is not in place."""
        if valid is not None:
            self.blocks.masked_fill_(~valid.unsqueeze(-1), 0.0)
        if not self.in_place:
            heads, length, width = self.target.shape
            self.target.copy_(self.blocks.view(heads, -1, width)[:, :length])


@torch.library.custom_op("long_range_arena::attend_blocks", mutates_args=())
def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pairs: Tensor, block_size: int, full: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, the log-sum-exp and the block means, saved for the backward."""
    out, lse, means = _new_results(q, block_size, full)

    def run(start: int, stop: int) -> None:
        part = _prepare(q, k, v, mask, pairs, block_size, start, stop)
        fine, norm = _attend_fine(part, block_size)
        rows = _Rows(out, start, stop, block_size)
        if full:
            blocks = (part.queries, part.keys, part.values)
            for x, mean in zip(blocks, means[:, start:stop], strict=True):
                by_head = x.view(stop - start, -1, block_size, q.shape[-1])
                mean.copy_(block_means(by_head, part.counts))
            coarse = _attend_coarse(part, means[:, start:stop])
            total = torch.logaddexp(norm, coarse.lse)
            torch.mul(fine, (norm - total).exp_().unsqueeze(-1), out=rows.blocks)
            item = (coarse.weights @ means[2, start:stop]).flatten(0, 1).unsqueeze(1)
            rows.blocks.addcmul_((coarse.lse - total).exp_().unsqueeze(-1), item)
            norm = total
        else:
            rows.blocks.copy_(fine)
        rows.store(part.valid)
        lse[start:stop] = norm.view_as(lse[start:stop])

    over_heads(run, *lse.shape[:2])
    return out, lse, means


@_attend.register_fake
def _new_results_of(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pairs: Tensor, block_size: int, full: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _new_results(q, block_size, full)


def _new_results(q: Tensor, block_size: int, full: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, length, width = q.shape
    shape = (batch * heads, -(-length // block_size))
    means = q.new_empty(3 if full else 0, *shape, width)
    return q.new_empty(q.shape), q.new_empty(*shape, block_size), means


@torch.library.custom_op("long_range_arena::attend_blocks_backward", mutates_args=())
def _attend_backward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pairs: Tensor, out: Tensor, lse: Tensor,
    means: Tensor, grad: Tensor, block_size: int, full: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grads = q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)

    def run(start: int, stop: int) -> None:
        part = _prepare(q, k, v, mask, pairs, block_size, start, stop)
        out_rows, grad_rows = (
            head_blocks(x, start, stop, block_size, mask).flatten(0, 1) for x in (out, grad)
        )
        norm = lse[start:stop].flatten(0, 1)
        rows = [_Rows(x, start, stop, block_size) for x in grads]
        to_q, to_k, to_v = (x.blocks for x in rows)
        _differentiate_fine(part, out_rows, norm, grad_rows, (to_q, to_k, to_v))
        if full:
            spread = _differentiate_coarse(part, means[:, start:stop], out_rows, norm, grad_rows)
            for x, token in zip((to_q, to_k, to_v), spread, strict=True):
                x += token
        for x in rows:
            x.store(part.valid)

    over_heads(run, *lse.shape[:2])
    return grads


@_attend_backward.register_fake
def _new_grads_of(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pairs: Tensor, out: Tensor, lse: Tensor,
    means: Tensor, grad: Tensor, block_size: int, full: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, mask, pairs, ctx.block_size, ctx.full = inputs
    ctx.save_for_backward(q, k, v, mask, pairs, *output)


def _backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
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
