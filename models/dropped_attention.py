"""Softmax attention with dropped weights, fast on the CPU: one function with its own backward.

On a CPU, `scaled_dot_product_attention` materialises the weights as soon as some are dropped. Here
they are never stored: the hash of `models/dropout.py` decides from a seed which weights are kept,
with a head's queries as rows and its keys as columns, and forward and backward both compute the
hash. Each head is one call of `models/softmax_kernel.py`, and `models/threads.py` distributes the
heads among threads. The plain form is `models.softmax.softmax_attention` with the mask of
`kept_weights`.

Axes: B batch, H heads, N queries, M keys, K head width.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.dropout import is_for_kernels, kept_reference, threshold
from models.precision import full_precision
from models.randomness import draw_seed
from models.threads import over_heads

Array = NDArray[Any]

# The most query-key pairs that a thread takes at once, unless one head has more: about a
# millisecond of work.
PAIRS = 2**19


def kept_weights(seed: int, batch: int, heads: int, queries: int, keys: int, p: float) -> Tensor:
    """Compute which weights a seed keeps, `(B, H, N, M)` bool, in plain numpy."""
    return kept_reference(seed, batch * heads * queries, keys, p).view(batch, heads, queries, keys)


def _kernel() -> Any:
    # Not imported above, because a machine that computes on a GPU may lack numba.
    import models.softmax_kernel as softmax_kernel

    return softmax_kernel


def _by_head(tensors: dict[str, Tensor]) -> dict[str, Array]:
    return {name: full_precision(x.detach()).numpy() for name, x in tensors.items()}


def _new_heads(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return an empty tensor like `x` `(B, H, N, K)`, with tokens outside heads in memory."""
    batch, heads, length, width = x.shape
    return x.new_empty(batch, length, heads, width, dtype=dtype).transpose(1, 2)


class _Heads:
    """The heads of a call: the kernel's arguments for each, and blocks for its arrays."""

    def __init__(self, q: Tensor, k: Tensor, mask: Tensor | None, seed: int, p: float) -> None:
        (self.batch, self.heads, self.queries, width), self.keys = q.shape, k.shape[2]
        self.dtype = np.dtype(np.float64 if q.dtype == torch.float64 else np.float32)
        self.width = width
        self.real = np.zeros((self.batch, len(self.empty(self.keys))), np.bool_)
        self.real[:, : self.keys] = True if mask is None else mask.numpy()
        self.mask = seed, threshold(p), self.dtype.type(1 / (1 - p))
        self.scale = self.dtype.type(width**-0.5)

    def slices(self) -> tuple[int, int]:
        """Return the number of heads, and how many a thread takes at a time."""
        total = self.batch * self.heads
        return total, max(1, min(total, PAIRS // max(1, self.queries * self.keys)))

    def arguments(self, head: int) -> tuple[Any, ...]:
        """Return the kernel's arguments for a head that follow queries, keys and values."""
        seed, least, factor = self.mask
        row = head * self.queries
        return self.real[head // self.heads], seed, row, least, factor, self.scale

    def empty(self, length: int) -> Array:
        """Return an array `(X T, C)` for `length` tokens."""
        return np.empty(_kernel().padded(length, self.width, self.dtype.itemsize), self.dtype)

    def read(self, start: int, stop: int, **arrays: Array) -> Iterator[tuple[int, list[Array]]]:
        """Yield heads with their tokens in blocks, which are 0 where there is no token.

        The blocks are the same for every head: allocating memory costs more than filling it.
        """
        blocks = [self.empty(x.shape[2]) for x in arrays.values()]
        for head in range(start, stop):
            b, h = divmod(head, self.heads)
            for (name, x), block in zip(arrays.items(), blocks, strict=True):
                there = np.ones(x.shape[2], np.bool_)
                if name in ("k", "v"):
                    there = self.real[b, : self.keys]
                _kernel().pack(x[b, h], there, block)
            yield head, blocks

    def write(self, head: int, blocks: Array, x: Array) -> None:
        """Copy a head's tokens from their blocks to `x`."""
        b, h = divmod(head, self.heads)
        x[b, h] = blocks[: x.shape[2], : x.shape[3]]


class _DroppedAttention(torch.autograd.Function):
    """The compiled kernel over all heads; first derivatives only, as with torch's fused kernels."""

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, seed: int, p: float
    ) -> tuple[Tensor, Tensor]:
        heads, given = _Heads(q, k, mask, seed, p), _by_head({"q": q, "k": k, "v": v})
        out = _new_heads(q, full_precision(q[:0]).dtype)
        total, size = heads.slices()
        lse = out.new_empty(total, len(heads.empty(heads.queries)))
        outs, sums = out.numpy(), lse.numpy()

        def run(start: int, stop: int) -> None:
            rows = heads.empty(heads.queries)
            for head, blocks in heads.read(start, stop, **given):
                _kernel().attend(*blocks, *heads.arguments(head), rows, sums[head])
                heads.write(head, rows, outs)

        over_heads(run, total, size)
        return out.to(q.dtype), lse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        q, k, v, mask, ctx.seed, ctx.p = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(q, k, v, mask, *output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "softmax attention with dropout on the CPU has first derivatives only; use"
                " fused=False for second derivatives"
            )
        q, k, v, mask, out, lse = ctx.saved_tensors
        heads = _Heads(q, k, mask, ctx.seed, ctx.p)
        given = _by_head({"q": q, "k": k, "v": v, "out": out, "grad": grad})
        grads = [_new_heads(x, full_precision(x[:0]).dtype) for x in (q, k, v)]
        results, sums = [x.numpy() for x in grads], lse.numpy()

        def run(start: int, stop: int) -> None:
            to_qkv = [heads.empty(x.shape[2]) for x in results]
            for head, (*qkv, rows, towards) in heads.read(start, stop, **given):
                here = rows, sums[head], towards
                _kernel().differentiate(*qkv, *heads.arguments(head), *here, *to_qkv)
                for blocks, x in zip(to_qkv, results, strict=True):
                    heads.write(head, blocks, x)

        over_heads(run, *heads.slices())
        return *(x.to(q.dtype) for x in grads), None, None, None


def is_supported(q: Tensor, dropout: float) -> bool:
    """Return whether `dropped_attention` supports these queries and this dropout probability.

    They must be on the CPU, in float32, float64, bfloat16 or float16, outside `torch.compile`.
    """
    known = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    return 0 < dropout < 1 and q.dtype in known and q.numel() > 0 and is_for_kernels(q)


def dropped_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    """Compute softmax attention with dropped weights, in memory that grows linearly with N.

    Args:
        q: Queries `(B, H, N, K)` of any strides, for which `is_supported` holds. bfloat16 and
            float16 are computed in float32.
        k: Keys `(B, H, M, K)`.
        v: Values `(B, H, M, K)`.
        mask: `(B, M)` bool, True for real keys; None when all are. A sequence without a real key
            attends to nothing: its output is 0.
        dropout: Probability of dropping a weight, met to within 2^-33. The mask is determined by
            one number drawn from `models.randomness`.

    Returns:
        `(B, H, N, K)`. Any number of threads gives the same bits.
    """
    assert is_supported(q, dropout)
    seed = draw_seed()
    call = _DroppedAttention.apply
    output: Tensor = call(q, k, v, mask, seed, dropout)[0]  # type: ignore[no-untyped-call]
    return output
