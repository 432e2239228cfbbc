"""MRA attention of one head on one CPU core, compiled by numba; `models/mra_blocks.py` calls it.

A head is packed into blocks whose sizes are whole vectors of the processor, with zeros where there
is no real token. Everything then consists of products of such blocks, `multiply`, and the
exponentials between them. Logits are kept transposed, keys by queries, so that a vector holds
queries, and the softmax along the keys is plain vector arithmetic. Only one block row's logits are
kept, and the backward pass computes them again.

Compiled code does not check bounds: functions that are called from outside first compare shapes.

Axes: N length, K head width; X query blocks, Y key blocks, b tokens per block. In the arrays, a
block has T >= b tokens, a token has C >= K columns, and there are S >= X means; all three are whole
vectors.
"""

import math

import numpy as np

from models.compiled import FLOOR, Array, compiled, exp2, multiply, transpose


@compiled
def _fit(x: Array, real: Array, packed: Array) -> bool:
    sizes = len(real) == len(packed) and real.shape[1] <= packed.shape[1]
    # The last block has tokens too, and `real` may not be True beyond the last token.
    ends = real.size - real.shape[1] < len(x) <= real.size
    return sizes and ends and x.shape[1] <= packed.shape[2]


@compiled
def pack(x: Array, real: Array, packed: Array) -> None:
    """Copy the real tokens of `x` `(N, K)` into blocks `packed` `(X, T, C)`, with zeros elsewhere.

    Args:
        x: Tokens, of any strides.
        real: `(X, b)` bool, False beyond the last token.
        packed: The output.
    """
    length, width = x.shape
    tokens = real.shape[1]
    assert _fit(x, real, packed)
    for block in range(packed.shape[0]):
        for i in range(packed.shape[1]):
            place = block * tokens + i
            if i < tokens and place < length and real[block, i]:
                for d in range(width):
                    packed[block, i, d] = x[place, d]
                for d in range(width, packed.shape[2]):
                    packed[block, i, d] = 0
            else:
                for d in range(packed.shape[2]):
                    packed[block, i, d] = 0


@compiled
def unpack(packed: Array, real: Array, x: Array) -> None:
    """Copy the real tokens of blocks `packed` `(X, T, C)` to `x` `(N, K)`; the others become 0."""
    length, width = x.shape
    tokens = real.shape[1]
    assert _fit(x, real, packed)
    for place in range(length):
        block, i = place // tokens, place % tokens
        for d in range(width):
            x[place, d] = packed[block, i, d] if real[block, i] else 0


@compiled
def average(packed: Array, counts: Array, means: Array) -> None:
    """Write the means of the `counts` `(X,)` real tokens of blocks `(X, T, C)` to `means` `(S, C)`.

    S >= X is a whole number of vectors; entries from X on become 0.
    """
    assert len(counts) == len(packed) <= len(means) and means.shape[1] == packed.shape[2]
    for block in range(means.shape[0]):
        for d in range(means.shape[1]):
            means[block, d] = 0
        if block < packed.shape[0]:
            for i in range(packed.shape[1]):
                for d in range(packed.shape[2]):
                    means[block, d] += packed[block, i, d]
            for d in range(packed.shape[2]):
                means[block, d] /= max(counts[block], 1)


@compiled
def _weigh_coarse(
    means: Array, counts: Array, selected: Array, factor: float, weights: Array, top: Array
) -> None:
    """Weight each block that is left as one item: c_y times the weight of its mean logit.

    Args:
        means: `(3, S, C)`.
        counts: `(X,)`.
        selected: `(X, Y)` bool.
        factor: Factor that turns a logit into a power of 2.
        weights: Output `(S, S)`: relative to the largest of a row, 0 for blocks that are not left.
        top: Output `(S,)`: that largest one as a power of 2, FLOOR if none is left.
    """
    keys = np.empty((means.shape[2], means.shape[1]), means.dtype)
    transpose(means[1], factor, keys)
    multiply(weights, means[0], keys, False)
    logs = np.full(len(top), means.dtype.type(FLOOR))
    for y in range(len(counts)):
        if counts[y]:
            logs[y] = math.log2(counts[y])
    alive = (counts > 0).sum()
    for x in range(len(top)):
        top[x] = FLOOR
        # Not read off the logits, because they may be NaN, which a maximum does not show.
        if x < len(counts) and counts[x] and selected[x].sum() < alive:
            largest = top[x]
            for y in range(len(counts)):
                logit = top.dtype.type(FLOOR) if selected[x, y] else weights[x, y] + logs[y]
                weights[x, y] = logit
                largest = max(largest, logit)
            top[x] = largest
            for y in range(len(counts)):
                weights[x, y] = exp2(weights[x, y] - largest)
            for y in range(len(counts), len(top)):
                weights[x, y] = 0
        else:
            for y in range(len(top)):
                weights[x, y] = 0


@compiled
def _choose(selected: Array, chosen: Array) -> int:
    """Write the key blocks that a block row selected, and return how many there are."""
    num = 0
    for y in range(len(selected)):
        if selected[y]:
            chosen[num] = y
            num += 1
    return num


@compiled
def _attend_coarse(
    means: Array, counts: Array, selected: Array, factor: float, items: Array, norm: Array,
    top: Array,
) -> None:  # fmt: skip
    """Write what a block row takes from the blocks that are left: values, sum of weights, `top`."""
    weights = np.empty((len(top), len(top)), means.dtype)
    _weigh_coarse(means, counts, selected, factor, weights, top)
    multiply(items, weights, means[2], False)
    for x in range(len(norm)):
        for y in range(len(norm)):
            norm[x] += weights[x, y]


@compiled
def _weigh_fine(real: Array, weights: Array, top: Array, norm: Array) -> None:
    """Turn the logits `(T, T)` of a block's keys into weights relative to `top`, and sum them."""
    for j in range(len(weights)):
        if j < len(real) and real[j]:
            for i in range(len(top)):
                weight = exp2(weights[j, i] - top[i])
                weights[j, i] = weight
                norm[i] += weight
        else:
            for i in range(len(top)):
                weights[j, i] = 0


@compiled
def attend(
    Q: Array, K: Array, V: Array, real: Array, counts: Array, selected: Array, scale: float,
    means: Array, out: Array, lse: Array,
) -> None:  # fmt: skip
    """Compute the attention of one head.

    Args:
        Q: Queries `(X, T, C)`.
        K: Keys of the same shape.
        V: Values of the same shape.
        real: `(X, b)` bool, True for real tokens.
        counts: `(X,)`, the number of real tokens.
        selected: `(X, Y)` bool, True for pairs of blocks computed exactly, live ones only.
        scale: Factor by which logits are multiplied.
        means: Block means of queries, keys and values `(3, S, C)`; of size 0 for MRA-2-s.
        out: Output `(X, T, C)`.
        lse: Output `(X, T)`: log2 of the sum of 2^(logits log2 e), FLOOR without a key.
    """
    num_blocks, tokens, columns = Q.shape
    kind, full = Q.dtype.type, means.size > 0
    factor, zero = kind(scale * math.log2(math.e)), kind(0)
    assert K.shape == Q.shape and V.shape == Q.shape and out.shape == Q.shape
    assert len(real) == len(counts) == num_blocks and selected.shape == (num_blocks, num_blocks)
    assert lse.shape == (num_blocks, tokens) and (not full or means.shape[1] >= num_blocks)
    items = np.zeros((means.shape[1], columns), Q.dtype)
    coarse_norm = np.zeros(num_blocks, Q.dtype)
    coarse_top = np.full(means.shape[1], kind(FLOOR))
    if full:
        _attend_coarse(means, counts, selected, factor, items, coarse_norm, coarse_top)

    most = 1
    for x in range(num_blocks):
        most = max(most, selected[x].sum())
    weights, chosen = np.empty((most, tokens, tokens), Q.dtype), np.empty(num_blocks, np.int64)
    query = np.empty((columns, tokens), Q.dtype)
    top, norm = np.empty(tokens, Q.dtype), np.empty(tokens, Q.dtype)
    for x in range(num_blocks):
        transpose(Q[x], factor, query)
        num = _choose(selected[x], chosen)
        for i in range(tokens):
            top[i] = coarse_top[x]
        for p in range(num):
            multiply(weights[p], K[chosen[p]], query, False)
            for j in range(real.shape[1]):
                if real[chosen[p], j]:
                    for i in range(tokens):
                        top[i] = max(top[i], weights[p, j, i])
        for i in range(tokens):
            share = exp2(coarse_top[x] - top[i]) if coarse_top[x] > FLOOR else zero
            norm[i] = share * coarse_norm[x]
            for d in range(columns):
                out[x, i, d] = share * items[x, d]
        for p in range(num):
            _weigh_fine(real[chosen[p]], weights[p], top, norm)
            multiply(out[x], weights[p].T, V[chosen[p]], True)
        for i in range(tokens):
            # A comparison with 0, so that NaN propagates to both.
            lse[x, i] = FLOOR if norm[i] == 0 else top[i] + math.log2(norm[i])
            inverse = zero if norm[i] == 0 else 1 / norm[i]
            for d in range(columns):
                out[x, i, d] *= inverse


@compiled
def differentiate(
    Q: Array, K: Array, V: Array, real: Array, counts: Array, selected: Array, scale: float,
    means: Array, out: Array, lse: Array, grad: Array, grad_q: Array, grad_k: Array, grad_v: Array,
) -> None:  # fmt: skip
    """Write the gradients of `attend`, `(X, T, C)` each, given that of its output, `grad`.

    With P the weights and D_i = grad_i . out_i: dS = P (grad V^T - D), dQ = dS K scale,
    dK = dS^T Q scale, dV = P^T grad. For the coarse part see `_differentiate_coarse`.
    """
    num_blocks, tokens, columns = Q.shape
    kind, full = Q.dtype.type, means.size > 0
    factor, one = kind(scale * math.log2(math.e)), kind(1)
    assert grad.shape == Q.shape and out.shape == Q.shape and lse.shape == Q.shape[:2]
    assert grad_q.shape == Q.shape and grad_k.shape == Q.shape and grad_v.shape == Q.shape
    inner = np.empty((num_blocks, tokens), Q.dtype)
    for x in range(num_blocks):
        for i in range(tokens):
            total = kind(0)
            for d in range(columns):
                total += grad[x, i, d] * out[x, i, d]
            inner[x, i] = total
    mean_grads = np.zeros_like(means)
    if full:
        _differentiate_coarse(counts, selected, scale, factor, means, lse, grad, inner, mean_grads)
    for x in range(num_blocks):
        for i in range(tokens):
            for d in range(columns):
                grad_q[x, i, d] = mean_grads[0, x, d] if full else kind(0)
                grad_k[x, i, d] = mean_grads[1, x, d] if full else kind(0)
                grad_v[x, i, d] = mean_grads[2, x, d] if full else kind(0)

    weights, slopes = np.empty((tokens, tokens), Q.dtype), np.empty((tokens, tokens), Q.dtype)
    query, towards = np.empty((columns, tokens), Q.dtype), np.empty((columns, tokens), Q.dtype)
    chosen = np.empty(num_blocks, np.int64)
    for x in range(num_blocks):
        transpose(Q[x], factor, query)
        transpose(grad[x], one, towards)
        for p in range(_choose(selected[x], chosen)):
            y = chosen[p]
            multiply(weights, K[y], query, False)
            multiply(slopes, V[y], towards, False)
            for j in range(tokens):
                if j < real.shape[1] and real[y, j]:
                    for i in range(tokens):
                        weight = exp2(weights[j, i] - lse[x, i])
                        weights[j, i] = weight
                        slopes[j, i] = (slopes[j, i] - inner[x, i]) * (weight * scale)
                else:
                    for i in range(tokens):
                        weights[j, i] = slopes[j, i] = 0
            multiply(grad_v[y], weights, grad[x], True)
            multiply(grad_k[y], slopes, Q[x], True)
            multiply(grad_q[x], slopes.T, K[y], True)


@compiled
def _differentiate_coarse(
    counts: Array, selected: Array, scale: float, factor: float, means: Array, lse: Array,
    grad: Array, inner: Array, mean_grads: Array,
) -> None:  # fmt: skip
    """Write the gradient of each token of a block through its means to `mean_grads` `(3, S, C)`.

    With W the coarse weights, w_i the factor that a query i gives them, U = sum of w_i grad_i and
    T = sum of w_i D_i: dL = W (U vm^T - T) scale, dqm = dL km, dkm = dL^T qm, dvm = W^T U.
    """
    _, size, columns = means.shape
    weights, slopes = np.empty((size, size), means.dtype), np.empty((size, size), means.dtype)
    top, pooled_inner = np.empty(size, means.dtype), np.zeros(size, means.dtype)
    pooled, values = np.zeros((size, columns), means.dtype), np.empty((columns, size), means.dtype)
    _weigh_coarse(means, counts, selected, factor, weights, top)
    for x in range(len(counts)):
        if top[x] > FLOOR:
            for i in range(lse.shape[1]):
                share = exp2(top[x] - lse[x, i])
                pooled_inner[x] += share * inner[x, i]
                for d in range(columns):
                    pooled[x, d] += share * grad[x, i, d]
    transpose(means[2], means.dtype.type(1), values)
    multiply(slopes, pooled, values, False)
    for x in range(size):
        for y in range(size):
            slopes[x, y] = (slopes[x, y] - pooled_inner[x]) * weights[x, y] * scale
    multiply(mean_grads[0], slopes, means[1], False)
    multiply(mean_grads[1], slopes.T, means[0], False)
    multiply(mean_grads[2], weights.T, pooled, False)
    for x in range(len(counts)):
        for part in range(3):
            for d in range(columns):
                mean_grads[part, x, d] /= max(counts[x], 1)
