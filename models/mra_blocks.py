"""Attention over selected pairs of blocks, fast on the CPU: one operator with its own backward.

`models/mra.py` has selected the pairs by then; here the attention over them is computed. The plain
form of the same function is `models.mra.gathered_attention`. Each head is one call of
`models/mra_kernel.py`, and `models/threads.py` distributes the heads among threads.

Axes: B batch, H heads, N length, K head width; X query blocks, Y key blocks, b tokens per block,
G heads of one slice. Inside the kernel a block has T >= b tokens, and a token C >= K columns.
"""

import math
import threading
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.threads import over_heads

Array = NDArray[Any]

# Stands in for minus infinity, so that the difference of two of them is not NaN.
FLOOR = -1e30
# Bytes of one vector of the processor, or of several.
VECTOR = 64
# Query blocks whose pairs are selected at a time.
BLOCKS_A_SLICE = 256

# Heads with fewer tokens are done before a second thread gets the GIL.
SHORT = 512


def heads_a_slice(heads: int, num_blocks: int) -> int:
    """Return how many of `heads` to take at a time, so that slices are small and no thread idle."""
    threads = min(torch.get_num_threads(), heads)
    return max(1, min(-(-heads // threads), BLOCKS_A_SLICE // num_blocks))


def to_blocks(x: Tensor, block_size: int, mask: Tensor | None) -> Tensor:
    """Return all heads of `x` `(B, H, N, K)` as blocks `(G, X, b, K)`, 0 under the mask."""
    if mask is not None:
        # Not a product, because masked input may be infinite.
        x = x.masked_fill(~mask[:, None, :, None], 0.0)
    length, width = x.shape[2:]
    num_blocks = -(-length // block_size)
    x = F.pad(x, (0, 0, 0, num_blocks * block_size - length))
    return x.reshape(-1, num_blocks, block_size, width)


def head_blocks(x: Tensor, start: int, stop: int, block_size: int, mask: Tensor | None) -> Tensor:
    """Compute `to_blocks` for heads `start` to `stop` one by one, because caches are small."""
    _, heads, length, width = x.shape
    num_blocks = -(-length // block_size)
    if x.is_contiguous() and mask is None and length % block_size == 0:
        return x.view(-1, num_blocks, block_size, width)[start:stop]
    blocks = x.new_zeros(stop - start, num_blocks * block_size, width)
    for i, head in enumerate(range(start, stop)):
        tokens = x[head // heads, head % heads]
        if mask is not None:
            tokens = tokens.masked_fill(~mask[head // heads, :, None], 0.0)
        blocks[i, :length] = tokens
    return blocks.view(-1, num_blocks, block_size, width)


def valid_tokens(x: Tensor, mask: Tensor | None, block_size: int) -> Tensor:
    """Return which tokens in blocks of `x` `(B, H, N, K)` are real, by head: `(G, X, b)` bool."""
    batch, heads, length, _ = x.shape
    if mask is None:
        mask = torch.ones(batch, length, dtype=torch.bool, device=x.device)
    padded = F.pad(mask, (0, -length % block_size))
    return padded.repeat_interleave(heads, 0).view(batch * heads, -1, block_size)


def block_means(blocks: Tensor, counts: Tensor) -> Tensor:
    """Average the `counts` `(..., X)` real tokens of blocks `(..., X, b, K)`; 0 without any."""
    return blocks.sum(-2) / counts.clamp(min=1).unsqueeze(-1)


def live_pairs(counts: Tensor) -> Tensor:
    """Return which pairs of blocks have a real query and a real key: `(..., X, Y)` bool."""
    alive = counts > 0
    return alive.unsqueeze(-1) & alive.unsqueeze(-2)


def selected_map(pairs: Tensor, counts: Tensor) -> Tensor:
    """Turn `pairs` `(B, H, M)` into a map `(G, X, Y)` bool, without pairs that are not live."""
    live = live_pairs(counts)
    selected = torch.zeros_like(live).flatten(1).scatter(1, pairs.flatten(0, 1), True)
    return selected.view_as(live) & live


class _Heads:
    """Heads of tensors `(B, H, N, K)` in the kernel's form, and its other arguments."""

    def __init__(self, x: Tensor, mask: Tensor | None, pairs: Tensor, block_size: int) -> None:
        valid = valid_tokens(x, mask, block_size)
        counts = valid.sum(-1)
        selected = selected_map(pairs, counts)
        self.valid, self.counts, self.selected = valid.numpy(), counts.numpy(), selected.numpy()
        self.heads, self.shape = x.shape[1], _packed_shape(x, block_size)
        self.dtype = x[:0].numpy().dtype
        self.scale = self.dtype.type(x.shape[-1] ** -0.5)
        self.whole = math.prod(self.shape) == x[0, 0].numel() and bool(valid.all())
        self.own = threading.local()

    def pairs(self, head: int) -> tuple[Array, Array, Array, Any]:
        """Return the real tokens, their counts, the selected pairs, and the scale of logits."""
        return self.valid[head], self.counts[head], self.selected[head], self.scale

    def blocks(self, head: int, name: str, x: Array) -> Array:
        """Return the array for the blocks `(X, T, C)` of a head: `x` itself if it has that form.

        Otherwise it is an array of this thread, the same one every time for a name, with its old
        contents: allocating memory costs more than filling it.
        """
        tokens = self._tokens(head, x)
        if self.whole and tokens.flags.c_contiguous:
            return tokens.reshape(self.shape)
        arrays: dict[str, Array] = self.own.__dict__
        if name not in arrays:
            arrays[name] = np.empty(self.shape, self.dtype)
        return arrays[name]

    def read(self, head: int, **tensors: Array) -> list[Array]:
        """Return a head of each tensor as blocks `(X, T, C)`, 0 under the mask."""
        filled = []
        for name, x in tensors.items():
            tokens, blocks = self._tokens(head, x), self.blocks(head, name, x)
            if not np.may_share_memory(tokens, blocks):
                _kernel().pack(tokens, self.valid[head], blocks)
            filled.append(blocks)
        return filled

    def write(self, head: int, blocks: Array, x: Array) -> None:
        """Copy blocks `(X, T, C)` to a head of `x`, 0 under the mask, unless already there."""
        tokens = self._tokens(head, x)
        if not np.may_share_memory(tokens, blocks):
            _kernel().unpack(blocks, self.valid[head], tokens)

    def _tokens(self, head: int, x: Array) -> Array:
        tokens: Array = x[head // self.heads, head % self.heads]
        return tokens


def _kernel() -> Any:
    # Not imported above, because a machine that computes on a GPU may lack numba.
    import models.compiled as compiled
    import models.mra_kernel as mra_kernel

    assert (compiled.FLOOR, compiled.VECTOR) == (FLOOR, VECTOR)
    return mra_kernel


def _whole_vectors(size: int, x: Tensor) -> int:
    lanes = VECTOR // x.element_size()
    return -(-size // lanes) * lanes


def _packed_shape(x: Tensor, block_size: int) -> tuple[int, int, int]:
    """Return the number of blocks X of a head, and their sizes T and C in whole vectors."""
    num_blocks = -(-x.shape[2] // block_size)
    return num_blocks, _whole_vectors(block_size, x), _whole_vectors(x.shape[3], x)


@torch.library.custom_op("long_range_arena::mra_attend_blocks", mutates_args=())
def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pairs: Tensor, block_size: int, full: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, and the log-sum-exp and the block means for the backward pass."""
    out, lse, means = _new_results(q, block_size, full)
    heads, kernel = _Heads(q, mask, pairs, block_size), _kernel()
    Q, K, V, outs, sums, averages = (x.numpy() for x in (q, k, v, out, lse, means))

    def run(start: int, stop: int) -> None:
        for head in range(start, stop):
            qkv, rows = heads.read(head, q=Q, k=K, v=V), heads.blocks(head, "out", outs)
            for blocks, mean in zip(qkv, averages[head], strict=False):
                kernel.average(blocks, heads.counts[head], mean)
            kernel.attend(*qkv, *heads.pairs(head), averages[head], rows, sums[head])
            heads.write(head, rows, outs)

    over_heads(run, len(lse), 1 if q.shape[2] >= SHORT else len(lse))
    return out, lse, means


@_attend.register_fake
def _new_results_of(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pairs: Tensor, block_size: int, full: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _new_results(q, block_size, full)


def _new_results(q: Tensor, block_size: int, full: bool) -> tuple[Tensor, Tensor, Tensor]:
    heads = q.shape[0] * q.shape[1]
    num_blocks, tokens, columns = _packed_shape(q, block_size)
    means = q.new_empty(heads, 3 if full else 0, _whole_vectors(num_blocks, q), columns)
    return q.new_empty(q.shape), q.new_empty(heads, num_blocks, tokens), means


@torch.library.custom_op("long_range_arena::mra_attend_blocks_backward", mutates_args=())
def _attend_backward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pairs: Tensor, out: Tensor, lse: Tensor,
    means: Tensor, grad: Tensor, block_size: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grads = q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)
    heads, kernel = _Heads(q, mask, pairs, block_size), _kernel()
    given = {"q": q, "k": k, "v": v, "out": out, "grad": grad}
    arrays = {name: x.numpy() for name, x in given.items()}
    results = [x.numpy() for x in grads]
    sums, averages = lse.numpy(), means.numpy()

    def run(start: int, stop: int) -> None:
        for head in range(start, stop):
            *qkv, rows, towards = heads.read(head, **arrays)
            to_qkv = [heads.blocks(head, f"grad {i}", x) for i, x in enumerate(results)]
            here = averages[head], rows, sums[head], towards
            kernel.differentiate(*qkv, *heads.pairs(head), *here, *to_qkv)
            for blocks, x in zip(to_qkv, results, strict=True):
                heads.write(head, blocks, x)

    over_heads(run, len(lse), 1 if q.shape[2] >= SHORT else len(lse))
    return grads


@_attend_backward.register_fake
def _new_grads_of(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pairs: Tensor, out: Tensor, lse: Tensor,
    means: Tensor, grad: Tensor, block_size: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.block_size, _ = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    grads = _attend_backward(*ctx.saved_tensors, grad, ctx.block_size)
    return *grads, None, None, None, None


_attend.register_autograd(_backward, setup_context=_save)


def _refuse(ctx: Any, *_: Tensor | None) -> None:
    raise NotImplementedError(
        "MRA on the CPU has first derivatives only; use models.mra.gathered_attention for second"
        " derivatives"
    )


_attend_backward.register_autograd(_refuse)


def attend_blocks(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pairs: Tensor, block_size: int, full: bool
) -> Tensor:
    """Attend to the selected pairs of blocks, and to the means of the other pairs if `full`.

    Args:
        q: Queries `(B, H, N, K)`, on the CPU, float32 or float64, of any strides.
        k: Keys, likewise.
        v: Values, likewise.
        mask: `(B, N)` bool, True for real tokens; None when all are.
        pairs: Selected pairs `(B, H, M)`, each encoded as query block times number of blocks plus
            key block.
        block_size: Tokens per block.
        full: MRA-2 if True, MRA-2-s if False.

    Returns:
        `(B, H, N, K)`.
    """
    out: Tensor = _attend(q, k, v, mask, pairs, block_size, full)[0]
    return out
