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
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# The kernel of `scaled_dot_product_attention` itself, which alone returns the log-sum-exp.
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default

# Stands for minus infinity, so that no difference of two of them is NaN.
FLOOR = -1e30
# Fewer pairs a chunk, or fewer query blocks a slice, are more calls; more of either leave the
# second-level cache, and take memory. Half or twice as many are within a tenth of the time.
PAIRS_A_CHUNK = 192
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


def heads_a_slice(heads: int, num_blocks: int) -> int:
    """Say how many of `heads` to take at a time: by size, and so that every thread has some."""
    threads = min(torch.get_num_threads(), heads)
    return max(1, min(-(-heads // threads), BLOCKS_A_SLICE // num_blocks))


def over_heads(run: Callable[[int, int], None], heads: int, size: int) -> None:
    """Call `run(start, stop)` for slices of `size` heads, on as many threads as torch may use.

    `run` writes to its own slice of tensors made beforehand, so that it does not matter which
    thread takes which: the same size gives the same bits.
    """
    slices = [(start, min(start + size, heads)) for start in range(0, heads, size)]
    threads = torch.get_num_threads()
    if threads == 1:
        for start, stop in slices:
            run(start, stop)
        return

    def task(bounds: tuple[int, int]) -> None:
        # Grad mode and the like belong to a thread; inference mode records nothing and may
        # write to tensors of either kind.
        with torch.inference_mode():
            run(*bounds)

    list(_workers(os.getpid(), threads).map(task, slices))


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


def valid_tokens(x: Tensor, mask: Tensor | None, block_size: int) -> Tensor:
    """Say which tokens of the blocks of each head of `x` `(B, H, N, K)` are real: `(G, X, b)`."""
    batch, heads, length, _ = x.shape
    if mask is None:
        mask = torch.ones(batch, length, dtype=torch.bool, device=x.device)
    padded = F.pad(mask, (0, -length % block_size))
    return padded.repeat_interleave(heads, 0).view(batch * heads, -1, block_size)


def block_means(blocks: Tensor, counts: Tensor) -> Tensor:
    """Average the `counts` `(..., X)` real tokens of blocks `(..., X, b, K)`; 0 without one."""
    return blocks.sum(-2) / counts.clamp(min=1).unsqueeze(-1)


def live_pairs(counts: Tensor) -> Tensor:
    """Say which pairs of blocks have a real query and a real key: `(..., X, Y)` bool."""
    alive = counts > 0
    return alive.unsqueeze(-1) & alive.unsqueeze(-2)


def selected_map(pairs: Tensor, counts: Tensor) -> Tensor:
    """Turn `pairs` `(B, H, M)` into a map `(G, X, Y)` bool, without pairs that are not live."""
    live = live_pairs(counts)
    selected = torch.zeros_like(live).flatten(1).scatter(1, pairs.flatten(0, 1), True)
    return selected.view_as(live) & live


class _Chunk(NamedTuple):
    """Dense attention of R query blocks to c key blocks each."""

    rows: slice  # places of the query blocks in the slice's order
    columns: Tensor  # (R c,), key blocks of the slice
    shape: tuple[int, int, int, int]  # of its keys and values: (R, 1, c b, K)


class _Layout(NamedTuple):
    """What is computed, and in which order: slices of heads one after the other."""

    size: int  # heads a slice
    valid: Tensor | None  # (G X, b) bool; None if all tokens are real
    counts: Tensor  # (G, X), real tokens
    left: Tensor  # (G, X, Y) bool, live pairs that were not selected
    order: Tensor  # (G X,), block rows of each slice, sorted by how many pairs they selected
    back: Tensor  # (G X,), the place of each block row in that order
    chunks: dict[int, list[_Chunk]]  # by the first head of the slice


def _lay_out(q: Tensor, mask: Tensor | None, pairs: Tensor, block_size: int) -> _Layout:
    """Sort the block rows of each slice, and cut them into chunks."""
    valid = valid_tokens(q, mask, block_size)
    counts = valid.sum(-1)
    selected = selected_map(pairs, counts)
    heads, num_blocks = counts.shape
    size = heads_a_slice(heads, num_blocks)
    rows_a_slice = size * num_blocks
    row_counts = selected.sum(-1).flatten()
    slice_of_row = torch.arange(len(row_counts)) // rows_a_slice
    order = (slice_of_row * (num_blocks + 1) + row_counts).argsort(stable=True)
    places, columns = selected.flatten(0, 1)[order].nonzero().unbind(1)
    columns += order[places] % rows_a_slice // num_blocks * num_blocks
    sorted_counts = row_counts[order].tolist()
    chunks: dict[int, list[_Chunk]] = {}
    pair = 0
    for start in range(0, heads, size):
        first = start * num_blocks
        sizes = _chunk_sizes(sorted_counts[first : first + rows_a_slice])
        chunks[start] = []
        row = 0
        for rows, count in sizes:
            taken = columns[pair : pair + rows * count]
            shape = (rows, 1, count * block_size, q.shape[-1])
            chunks[start].append(_Chunk(slice(row, row + rows), taken, shape))
            row, pair = row + rows, pair + rows * count
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order)) % rows_a_slice
    mixed = None if bool(valid.all()) else valid.flatten(0, 1)
    left = live_pairs(counts) & ~selected
    return _Layout(size, mixed, counts, left, order % rows_a_slice, back, chunks)


def _chunk_sizes(sorted_counts: list[int]) -> list[tuple[int, int]]:
    """Cut sorted rows into chunks `(rows, pairs of each)` of equal count and limited size."""
    sizes = []
    for count, group in Counter(sorted_counts).items():
        rows = max(1, PAIRS_A_CHUNK // count) if count else group
        sizes += [(min(rows, group - start), count) for start in range(0, group, rows)]
    return sizes


class _Slice(NamedTuple):
    """Some heads of the operator's inputs."""

    queries: Tensor  # (G X, b, K)
    keys: Tensor  # (G Y, b, K)
    values: Tensor  # (G Y, b, K)
    valid: Tensor | None  # (G X, b) bool; None if all tokens are real
    order: Tensor  # (G X,)
    back: Tensor  # (G X,)
    chunks: list[_Chunk]


def _cut(layout: _Layout, qkv: tuple[Tensor, Tensor, Tensor], mask: Tensor | None,
         block_size: int, start: int, stop: int) -> _Slice:  # fmt: skip
    """Take heads `start` to `stop`."""
    q, k, v = (head_blocks(x, start, stop, block_size, mask).flatten(0, 1) for x in qkv)
    num_blocks = len(q) // (stop - start)
    rows = slice(start * num_blocks, stop * num_blocks)
    valid = None if layout.valid is None else layout.valid[rows]
    return _Slice(q, k, v, valid, layout.order[rows], layout.back[rows], layout.chunks[start])


def _bias(part: _Slice, chunk: _Chunk) -> Tensor | None:
    """Return what keeps queries from keys that are not real, `(R, 1, 1, c b)`."""
    if part.valid is None:
        return None
    invalid = ~part.valid.index_select(0, chunk.columns)
    bias = part.keys.new_zeros(invalid.shape).masked_fill_(invalid, FLOOR)
    return bias.view(chunk.shape[0], 1, 1, chunk.shape[2])


def _attend_fine(part: _Slice) -> tuple[Tensor, Tensor]:
    """Attend to the selected blocks: `(G X, b, K)`, and the log-sum-exp `(G X, b)`."""
    queries = part.queries.index_select(0, part.order).unsqueeze(1)
    outs, norms = [], []
    for chunk in part.chunks:
        query = queries[chunk.rows]
        if len(chunk.columns):
            keys = part.keys.index_select(0, chunk.columns).view(chunk.shape)
            values = part.values.index_select(0, chunk.columns).view(chunk.shape)
            out, norm = _flash(query, keys, values, attn_mask=_bias(part, chunk))
        else:
            out, norm = torch.zeros_like(query), query.new_full(query.shape[:-1], FLOOR)
        outs.append(out)
        norms.append(norm)
    out, norm = (torch.cat(x).index_select(0, part.back).squeeze(1) for x in (outs, norms))
    return out, norm


def _differentiate_fine(
    part: _Slice, out: Tensor, lse: Tensor, grad: Tensor, grads: list[Tensor]
) -> None:
    """Write what queries, keys and values get through selected blocks to `grads` `(G X, b, K)`."""
    queries, outs, norms, out_grads = (
        x.index_select(0, part.order).unsqueeze(1) for x in (part.queries, out, lse, grad)
    )
    sorted_grads = []
    grad_k, grad_v = (x.zero_() for x in grads[1:])
    for chunk in part.chunks:
        rows, columns = chunk.rows, chunk.columns
        if not len(columns):
            sorted_grads.append(torch.zeros_like(queries[rows]))
            continue
        keys = part.keys.index_select(0, columns).view(chunk.shape)
        values = part.values.index_select(0, columns).view(chunk.shape)
        to_query, to_keys, to_values = _flash_backward(
            out_grads[rows], queries[rows], keys, values, outs[rows], norms[rows], 0.0, False,
            attn_mask=_bias(part, chunk),
        )  # fmt: skip
        sorted_grads.append(to_query)
        grad_k.index_add_(0, columns, to_keys.view(-1, *out.shape[1:]))
        grad_v.index_add_(0, columns, to_values.view(-1, *out.shape[1:]))
    torch.index_select(torch.cat(sorted_grads).squeeze(1), 0, part.back, out=grads[0])


def _weigh_coarse(means: Tensor, counts: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """Take each block in `left` `(G, X, Y)` for one item of logit L_xy + log c_y.

    Returns:
        The softmax over y, `(G, X, Y)`, and its log-sum-exp `(G X, 1)`, FLOOR where nothing is
        left.
    """
    logits = means[0] @ means[1].mT / means.shape[-1] ** 0.5
    logits += counts.clamp(min=1).to(logits.dtype).log().unsqueeze(-2)
    logits.masked_fill_(~left, FLOOR)
    lse = logits.logsumexp(-1, keepdim=True)
    return logits.sub_(lse).exp_().mul_(left), lse.view(-1, 1)


def _differentiate_coarse(
    means: Tensor, counts: Tensor, weights: Tensor, coarse_lse: Tensor, out: Tensor, lse: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return what each token of a block gets through the means, `(G X, 1, K)` each.

    With w the share of the coarse part in a query's softmax and D_i = grad_i . out_i,
    U_x = sum of w_i grad_i, T_x = sum of w_i D_i: dL = W (U vm^T - T), dvm = W^T U,
    dqm = dL km / sqrt(K), dkm = dL^T qm / sqrt(K).
    """
    heads, num_blocks, width = means.shape[1:]
    share = (coarse_lse - lse).exp_().unsqueeze(1)  # (G X, 1, b)
    inner = (grad * out).sum(-1, keepdim=True)
    pooled = (share @ grad).view(heads, num_blocks, width)
    logits = pooled @ means[2].mT - (share @ inner).view(heads, num_blocks, 1)
    logits *= weights / width**0.5
    each = counts.clamp(min=1).unsqueeze(-1)
    to_q, to_k, to_v = logits @ means[1] / each, logits.mT @ means[0] / each, weights.mT @ pooled
    return to_q.view(-1, 1, width), to_k.view(-1, 1, width), (to_v / each).view(-1, 1, width)


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
    heads, num_blocks = lse.shape[:2]
    layout = _lay_out(q, mask, pairs, block_size)

    def run(start: int, stop: int) -> None:
        here = slice(start, stop)
        part = _cut(layout, (q, k, v), mask, block_size, start, stop)
        fine, norm = _attend_fine(part)
        rows = _Rows(out, start, stop, block_size)
        if full:
            for x, mean in zip((part.queries, part.keys, part.values), means[:, here], strict=True):
                by_head = x.view(stop - start, num_blocks, block_size, -1)
                mean.copy_(block_means(by_head, layout.counts[here]))
            weights, coarse = _weigh_coarse(means[:, here], layout.counts[here], layout.left[here])
            total = torch.logaddexp(norm, coarse)
            item = (weights @ means[2, here]).flatten(0, 1).unsqueeze(1)
            torch.mul(fine, (norm - total).exp_().unsqueeze(-1), out=rows.blocks)
            rows.blocks.addcmul_((coarse - total).exp_().unsqueeze(-1), item)
            norm = total
        else:
            rows.blocks.copy_(fine)
        rows.store(part.valid)
        lse[here] = norm.view(stop - start, num_blocks, block_size)

    over_heads(run, heads, layout.size)
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
    heads, num_blocks = lse.shape[:2]
    layout = _lay_out(q, mask, pairs, block_size)

    def run(start: int, stop: int) -> None:
        here = slice(start, stop)
        part = _cut(layout, (q, k, v), mask, block_size, start, stop)
        out_rows, grad_rows = (
            head_blocks(x, start, stop, block_size, mask).flatten(0, 1) for x in (out, grad)
        )
        norm = lse[here].flatten(0, 1)
        rows = [_Rows(x, start, stop, block_size) for x in grads]
        _differentiate_fine(part, out_rows, norm, grad_rows, [x.blocks for x in rows])
        if full:
            coarse = _weigh_coarse(means[:, here], layout.counts[here], layout.left[here])
            spread = _differentiate_coarse(
                means[:, here], layout.counts[here], *coarse, out_rows, norm, grad_rows
            )
            for row, token in zip(rows, spread, strict=True):
                row.blocks += token
        for row in rows:
            row.store(part.valid)

    over_heads(run, heads, layout.size)
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
