"""Softmax attention of one head with dropout on one CPU core, compiled by numba.

`models/dropped_attention.py` calls it. Blocks of queries meet blocks of keys as in FlashAttention
(Dao et al. 2022, arXiv 2205.14135): only one block's logits are kept, sums are corrected as the
largest logit grows, and the backward pass computes weights again from the log-sum-exp. Both passes
hash (seed, row, column) to decide whether a weight is kept. Logits are kept transposed, keys by
queries, so that a vector holds queries, and the softmax along the keys is plain vector arithmetic.

Axes: N queries and M keys, both padded to whole blocks of T; K head width, padded to C columns,
which are whole vectors.
"""

import math

import numpy as np

from models.compiled import (
    FLOOR,
    VECTOR,
    Array,
    compiled,
    exp2,
    multiply,
    random_bits,
    row_key,
    transpose,
)

# Queries or keys per block: its logits, and their operands, fit into the nearest cache.
T = 64

# The two hash keys of each of T rows, and the smallest random bits that keep a weight.
Kept = tuple[Array, Array, int]


def padded(length: int, width: int, item: int) -> tuple[int, int]:
    """Return the shape `(X T, C)` that holds `(length, width)` items of `item` bytes."""
    lanes = VECTOR // item
    return -(-length // T) * T, -(-width // lanes) * lanes


@compiled
def pack(x: Array, real: Array, packed: Array) -> None:
    """Copy the `real` `(N,)` tokens of `x` `(N, K)` to `packed` `(X T, C)`; 0 elsewhere."""
    assert len(real) == len(x) <= len(packed) and x.shape[1] <= packed.shape[1]
    packed[:] = 0
    for i in range(len(x)):
        if real[i]:
            for d in range(x.shape[1]):
                packed[i, d] = x[i, d]


@compiled
def _fit(q: Array, k: Array, v: Array, real: Array, lse: Array) -> bool:
    blocks = len(q) % T == 0 and len(k) % T == 0
    pairs = k.shape == v.shape and q.shape[1] == k.shape[1]
    return blocks and pairs and len(real) == len(k) and len(lse) == len(q)


@compiled
def _row_keys(seed: int, row: int, first: Array, second: Array) -> None:
    """Write the two hash keys of the T rows from `row` on."""
    for i in range(T):
        key = row_key(seed, row + i)
        first[i], second[i] = np.uint32(key), np.uint32(key >> np.uint64(32))


@compiled
def _raise(weights: Array, real: Array, top: Array, before: Array) -> None:
    """Raise `top` to the largest logit of a block's real keys; set `before` to its old value."""
    for i in range(T):
        before[i] = top[i]
    for j in range(T):
        if real[j]:
            for i in range(T):
                top[i] = max(top[i], weights[j, i])


@compiled
def _rescale(top: Array, before: Array, norm: Array, result: Array) -> None:
    """Rescale sums that are relative to the maximum `before` to be relative to `top`."""
    for i in range(T):
        share = exp2(before[i] - top[i])
        norm[i] *= share
        for d in range(result.shape[1]):
            result[i, d] *= share


@compiled
def _weigh(weights: Array, real: Array, start: int, kept: Kept, top: Array, norm: Array) -> None:
    """Turn logits of keys from `start` on into weights relative to `top`, sum them, drop some."""
    first, second, least = kept
    zero, threshold = weights.dtype.type(0), np.uint32(least)
    for j in range(T):
        column = np.uint32(start + j)
        if real[j]:
            for i in range(T):
                weight = exp2(weights[j, i] - top[i])
                norm[i] += weight
                stays = random_bits(column, first[i], second[i]) >= threshold
                weights[j, i] = weight if stays else zero
        else:
            for i in range(T):
                weights[j, i] = zero


@compiled
def _slope(
    weights: Array, slopes: Array, real: Array, start: int, kept: Kept, lse: Array, inner: Array
) -> None:
    """Turn logits into weights after dropout, and gradients of these into those of logits."""
    first, second, least = kept
    zero, threshold = weights.dtype.type(0), np.uint32(least)
    for j in range(T):
        column = np.uint32(start + j)
        if real[j]:
            for i in range(T):
                weight = exp2(weights[j, i] - lse[i])
                stays = random_bits(column, first[i], second[i]) >= threshold
                weights[j, i] = weight if stays else zero
                slopes[j, i] = ((slopes[j, i] if stays else zero) - inner[i]) * weight
        else:
            for i in range(T):
                weights[j, i] = slopes[j, i] = zero


@compiled
def _inner_products(a: Array, b: Array, products: Array) -> None:
    """Write the inner products of the rows of `a` and `b` `(T, C)` to `products` `(T,)`."""
    for i in range(T):
        total = a.dtype.type(0)
        for d in range(a.shape[1]):
            total += a[i, d] * b[i, d]
        products[i] = total


@compiled
def attend(
    q: Array, k: Array, v: Array, real: Array, seed: int, row: int, threshold: int, factor: float,
    scale: float, out: Array, lse: Array,
) -> None:  # fmt: skip
    """Compute the attention of one head.

    Args:
        q: Queries `(N, C)`, 0 where there is no query.
        k: Keys `(M, C)`, likewise.
        v: Values `(M, C)`, likewise.
        real: `(M,)` bool, True for real keys.
        seed: Seed of the mask.
        row: Row of the first query in the hash, whose columns are the keys.
        threshold: The smallest value of 32 random bits that keeps a weight.
        factor: Factor by which kept weights are multiplied, of the dtype of `q`.
        scale: Factor by which logits are multiplied, of the dtype of `q`.
        out: Output `(N, C)`.
        lse: Output `(N,)`: log2 of the sum of 2^(logits log2 e), FLOOR without a key.
    """
    kind, columns = q.dtype.type, q.shape[1]
    assert _fit(q, k, v, real, lse) and out.shape == q.shape
    query, weights = np.empty((columns, T), q.dtype), np.empty((T, T), q.dtype)
    norm, top, before = np.empty(T, q.dtype), np.empty(T, q.dtype), np.empty(T, q.dtype)
    first, second = np.empty(T, np.uint32), np.empty(T, np.uint32)
    for x in range(0, len(q), T):
        rows, top[:], norm[:] = out[x : x + T], FLOOR, 0
        rows[:] = 0
        transpose(q[x : x + T], kind(scale * math.log2(math.e)), query)
        _row_keys(seed, row + x, first, second)
        for y in range(0, len(k), T):
            there = real[y : y + T]
            if there.any():
                multiply(weights, k[y : y + T], query, False)
                _raise(weights, there, top, before)
                _rescale(top, before, norm, rows)
                _weigh(weights, there, y, (first, second, threshold), top, norm)
                multiply(rows, weights.T, v[y : y + T], True)
        for i in range(T):
            # A comparison with 0, so that NaN propagates to both.
            lse[x + i] = FLOOR if norm[i] == 0 else top[i] + math.log2(norm[i])
            share = kind(0) if norm[i] == 0 else factor / norm[i]
            for d in range(columns):
                rows[i, d] *= share


@compiled
def differentiate(
    q: Array, k: Array, v: Array, real: Array, seed: int, row: int, threshold: int, factor: float,
    scale: float, out: Array, lse: Array, grad: Array, grad_q: Array, grad_k: Array, grad_v: Array,
) -> None:  # fmt: skip
    """Write the gradients of `attend`, `(N, C)` and `(M, C)`, given that of its output, `grad`.

    With P the weights, m the factor of a weight if it is kept, else 0, and
    D_i = grad_i . out_i: dS = P (m grad V^T - D), dQ = dS K scale, dK = dS^T Q scale,
    dV = (P m)^T grad.
    """
    kind, columns = q.dtype.type, q.shape[1]
    assert _fit(q, k, v, real, lse) and out.shape == q.shape and grad.shape == q.shape
    assert grad_q.shape == q.shape and grad_k.shape == k.shape and grad_v.shape == v.shape
    query, toward = np.empty((columns, T), q.dtype), np.empty((columns, T), q.dtype)
    weights, slopes = np.empty((T, T), q.dtype), np.empty((T, T), q.dtype)
    first, second, inner = np.empty(T, np.uint32), np.empty(T, np.uint32), np.empty(T, q.dtype)
    grad_q[:], grad_k[:], grad_v[:] = 0, 0, 0
    for x in range(0, len(q), T):
        transpose(q[x : x + T], kind(scale * math.log2(math.e)), query)
        transpose(grad[x : x + T], factor, toward)
        _inner_products(grad[x : x + T], out[x : x + T], inner)
        _row_keys(seed, row + x, first, second)
        for y in range(0, len(k), T):
            there = real[y : y + T]
            if there.any():
                multiply(weights, k[y : y + T], query, False)
                multiply(slopes, v[y : y + T], toward, False)
                kept = (first, second, threshold)
                _slope(weights, slopes, there, y, kept, lse[x : x + T], inner)
                multiply(grad_v[y : y + T], weights, grad[x : x + T], True)
                multiply(grad_k[y : y + T], slopes, q[x : x + T], True)
                multiply(grad_q[x : x + T], slopes.T, k[y : y + T], True)
    for i in range(len(q)):
        for d in range(columns):
            grad_q[i, d] *= scale
    for j in range(len(k)):
        for d in range(columns):
            grad_k[j, d] *= scale
            grad_v[j, d] *= factor
