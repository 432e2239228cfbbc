"""MRA attention of one head on one CPU core, compiled by numba; `models/mra_blocks.py` calls it.

A head is packed into blocks whose sizes are whole vectors of the processor, zeros where there is
no real token. Everything is then products of such blocks, `multiply`, and the exponentials
between them. Logits stand transposed, keys by queries, so that a vector holds queries: what a
softmax needs along the keys is then plain arithmetic of vectors. Only one block row's logits are
kept, and the backward computes them again.

All of it is one file because numba's cache on disk notices edits of a function's own file only.

Axes: N length, K head width; X query blocks, Y key blocks, b tokens a block, as given to a
caller; inside a block has T >= b tokens and a token C >= K columns, both whole vectors.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from models.mra_blocks import FLOOR, VECTOR, Array

Function = TypeVar("Function", bound=Callable[..., object])

# Rows of a tile: with two vectors each, its sums fill half of 32 registers.
ROWS = 8


def compiled(function: Function) -> Function:
    """Compile a function on its first call, keep it on disk, and run it without Python's lock.

    Sums may be added up in any order: the same machine gives the same bits.
    """
    return cast(Function, numba.njit(cache=True, nogil=True, fastmath=True)(function))


def _address(context: Any, builder: Any, kind: Any, array: Any) -> Callable[[Any, Any], Any]:
    """Return what gives the address of an item of a matrix from its row and column."""
    fields = context.make_array(kind)(context, builder, array)
    strides = numba.core.cgutils.unpack_tuple(builder, fields.strides)
    byte = ir.IntType(8).as_pointer()
    start = builder.bitcast(fields.data, byte)

    def address(row: Any, column: Any) -> Any:
        steps = [builder.mul(i, stride) for i, stride in zip((row, column), strides, strict=True)]
        item = context.get_value_type(kind.dtype).as_pointer()
        return builder.bitcast(builder.gep(start, [builder.add(*steps)]), item)

    return address


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]  # numba has no types
def _tile(typing: Any, num: Any, c: Any, row: Any, column: Any, a: Any, b: Any, add: Any) -> Any:
    """Compute ROWS rows of `num` vectors of a product, sums in registers, from `row`, `column`.

    What a compiler makes of three loops keeps the sums in memory, at less than half the speed.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, c_array, row, column, a_array, b_array, add = arguments
        _, c_kind, _, _, a_kind, b_kind, _ = signature.args
        c, a, b = (
            _address(context, builder, kind, array)
            for kind, array in ((c_kind, c_array), (a_kind, a_array), (b_kind, b_array))
        )
        item, size = context.get_value_type(c_kind.dtype), c_kind.dtype.bitwidth // 8
        vector, index = ir.VectorType(item, VECTOR // size), ir.IntType(64)
        rows = [builder.add(row, index(r)) for r in range(ROWS)]
        columns = [builder.add(column, index(v * vector.count)) for v in range(num.literal_value)]
        depth = builder.extract_value(
            context.make_array(b_kind)(context, builder, b_array).shape, 0
        )
        sums = [(c(r, j), r) for r in rows for j in columns]
        sums = [builder.bitcast(place, vector.as_pointer()) for place, _ in sums]

        entry = builder.block
        resume, loop, end = (builder.append_basic_block(name) for name in ("add", "k", "end"))
        builder.cbranch(builder.icmp_signed("!=", add, add.type(0)), resume, loop)
        builder.position_at_end(resume)
        old = [builder.load(place, align=size) for place in sums]
        builder.branch(loop)

        builder.position_at_end(loop)
        k = builder.phi(index)
        totals = [builder.phi(vector) for _ in sums]
        for total, loaded in zip(totals, old, strict=True):
            total.add_incoming(ir.Constant(vector, None), entry)
            total.add_incoming(loaded, resume)
        right = [
            builder.load(builder.bitcast(b(k, j), vector.as_pointer()), align=size) for j in columns
        ]
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None)
        nothing, new = ir.Constant(vector, ir.Undefined), []
        for r in rows:
            left = builder.insert_element(nothing, builder.load(a(r, k)), ir.IntType(32)(0))
            left = builder.shuffle_vector(left, nothing, lanes)
            for x in right:
                product = builder.fmul(left, x, flags=("contract",))
                new.append(builder.fadd(totals[len(new)], product, flags=("contract",)))
        following = builder.add(k, index(1))
        k.add_incoming(index(0), entry)
        k.add_incoming(index(0), resume)
        k.add_incoming(following, loop)
        for total, value in zip(totals, new, strict=True):
            total.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", following, depth), loop, end)

        builder.position_at_end(end)
        for value, place in zip(new, sums, strict=True):
            builder.store(value, place, align=size)
        return context.get_dummy_value()

    return types.void(num, c, types.intp, types.intp, a, b, types.boolean), generate


@compiled
def multiply(c: Array, a: Array, b: Array, add: bool) -> None:
    """Write `a` `(m, k)` times `b` `(k, n)` to `c` `(m, n)`, or add it to what is there.

    Rows of `b` and `c` are contiguous; m is a multiple of ROWS, n of a vector.
    """
    lanes = VECTOR // c.itemsize
    for row in range(0, c.shape[0], ROWS):
        column = 0
        while column + 2 * lanes <= c.shape[1]:
            _tile(2, c, row, column, a, b, add)
            column += 2 * lanes
        if column < c.shape[1]:
            _tile(1, c, row, column, a, b, add)


@intrinsic  # type: ignore[untyped-decorator]  # numba has no types
def exp2(typing: Any, x: Any) -> Any:
    """Compute 2^x for x <= 0, 0 below the normal numbers, in operations that vectorise.

    With n the integer next to x, 2^(x - n) is its Taylor series up to the last bit or two.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.return_type
        mantissa, bias, degree = (23, 127, 7) if kind == types.float32 else (52, 1023, 13)
        real, integer = context.get_value_type(kind), ir.IntType(kind.bitwidth)
        (x,) = arguments
        least = real(-bias)
        x = builder.select(builder.fcmp_ordered("<", x, least), least, x)
        n = builder.call(builder.module.declare_intrinsic("llvm.rint", [real]), [x])
        rest, series = builder.fsub(x, n), real(0)
        for power in range(degree, -1, -1):
            term = real(math.log(2) ** power / math.factorial(power))
            product = builder.fmul(series, rest, flags=("contract",))
            series = builder.fadd(product, term, flags=("contract",))
        exponent = builder.add(builder.fptosi(n, integer), integer(bias))
        two_to_n = builder.bitcast(builder.shl(exponent, integer(mantissa)), real)
        return builder.fmul(series, two_to_n)

    return x(x), generate


@compiled
def pack(x: Array, real: Array, packed: Array) -> None:
    """Copy the tokens `x` `(N, K)` that are real into blocks `packed` `(X, T, C)`, else 0.

    Args:
        x: Of any strides.
        real: `(X, b)` bool, False behind the last token.
        packed: What is written.
    """
    length, width = x.shape
    tokens = real.shape[1]
    for block in range(packed.shape[0]):
        for i in range(packed.shape[1]):
            place = block * tokens + i
            if i < tokens and real[block, i]:
                for d in range(width):
                    packed[block, i, d] = x[place, d]
                for d in range(width, packed.shape[2]):
                    packed[block, i, d] = 0
            else:
                for d in range(packed.shape[2]):
                    packed[block, i, d] = 0


@compiled
def unpack(packed: Array, real: Array, x: Array) -> None:
    """Copy the real tokens of blocks `packed` `(X, T, C)` to `x` `(N, K)`, 0 to the others."""
    length, width = x.shape
    tokens = real.shape[1]
    for place in range(length):
        block, i = place // tokens, place % tokens
        for d in range(width):
            x[place, d] = packed[block, i, d] if real[block, i] else 0


@compiled
def average(packed: Array, counts: Array, means: Array) -> None:
    """Write the means `(X, C)` of the `counts` `(X,)` real tokens of blocks `(X, T, C)`."""
    for block in range(packed.shape[0]):
        for d in range(packed.shape[2]):
            means[block, d] = 0
        for i in range(packed.shape[1]):
            for d in range(packed.shape[2]):
                means[block, d] += packed[block, i, d]
        for d in range(packed.shape[2]):
            means[block, d] /= max(counts[block], 1)


@compiled
def _transpose(block: Array, factor: float, transposed: Array) -> None:
    for i in range(block.shape[0]):
        for d in range(block.shape[1]):
            transposed[d, i] = block[i, d] * factor


@compiled
def _coarse_logits(
    query: Array, key_means: Array, counts: Array, selected: Array, factor: float, logits: Array
) -> float:
    """Write the logits of a block row's blocks that are left, FLOOR for others, in powers of 2.

    A block is one item of c_y times the weight of its mean logit.

    Returns:
        The largest one.
    """
    top = FLOOR
    for y in range(len(counts)):
        logits[y] = FLOOR
        if counts[y] and not selected[y]:
            logit = logits.dtype.type(0)
            for d in range(len(query)):
                logit += query[d] * key_means[y, d]
            logits[y] = logit * factor + math.log2(counts[y])
            top = max(top, logits[y])
    return top


@compiled
def attend(
    Q: Array, K: Array, V: Array, real: Array, counts: Array, selected: Array, scale: float,
    means: Array, out: Array, lse: Array,
) -> None:  # fmt: skip
    """Compute the attention of one head.

    Args:
        Q: Queries `(X, T, C)`.
        K: Keys, alike.
        V: Values, alike.
        real: `(X, b)` bool, the real tokens.
        counts: `(X,)`, how many of them.
        selected: `(X, Y)` bool, the pairs of blocks computed exactly, live ones only.
        scale: What logits are multiplied with.
        means: Block means of queries, keys and values `(3, X, C)`; of size 0 for MRA-2-s.
        out: Written, `(X, T, C)`.
        lse: Written, `(X, T)`: log2 of the sum of 2^(logits log2 e), FLOOR without a key.
    """
    num_blocks, tokens, columns = Q.shape
    full = means.size > 0
    factor = Q.dtype.type(scale * math.log2(math.e))
    most = 1
    for x in range(num_blocks):
        most = max(most, selected[x].sum())
    weights = np.empty((most, tokens, tokens), Q.dtype)
    chosen = np.empty(most, np.int64)
    query = np.empty((columns, tokens), Q.dtype)
    top, norm = np.empty(tokens, Q.dtype), np.empty(tokens, Q.dtype)
    logits, item = np.empty(num_blocks, Q.dtype), np.empty(columns, Q.dtype)

    for x in range(num_blocks):
        _transpose(Q[x], factor, query)
        coarse_top = Q.dtype.type(FLOOR)
        if full and counts[x]:
            coarse_top = Q.dtype.type(
                _coarse_logits(means[0, x], means[1], counts, selected[x], factor, logits)
            )
        for i in range(tokens):
            top[i] = coarse_top
            norm[i] = 0
            for d in range(columns):
                out[x, i, d] = 0
        num = 0
        for y in range(num_blocks):
            if selected[x, y]:
                chosen[num] = y
                multiply(weights[num], K[y], query, False)
                for j in range(real.shape[1]):
                    if real[y, j]:
                        for i in range(tokens):
                            top[i] = max(top[i], weights[num, j, i])
                num += 1
        for p in range(num):
            for j in range(tokens):
                if j < real.shape[1] and real[chosen[p], j]:
                    for i in range(tokens):
                        weight = exp2(weights[p, j, i] - top[i])
                        weights[p, j, i] = weight
                        norm[i] += weight
                else:
                    for i in range(tokens):
                        weights[p, j, i] = 0
            multiply(out[x], weights[p].T, V[chosen[p]], True)
        if coarse_top > FLOOR:
            total = Q.dtype.type(0)
            for d in range(columns):
                item[d] = 0
            for y in range(num_blocks):
                weight = exp2(logits[y] - coarse_top)
                if weight > 0:
                    total += weight
                    for d in range(columns):
                        item[d] += weight * means[2, y, d]
            for i in range(tokens):
                share = exp2(coarse_top - top[i])
                norm[i] += share * total
                for d in range(columns):
                    out[x, i, d] += share * item[d]
        for i in range(tokens):
            lse[x, i] = top[i] + math.log2(norm[i]) if norm[i] > 0 else FLOOR
            inverse = 1 / norm[i] if norm[i] > 0 else Q.dtype.type(0)
            for d in range(columns):
                out[x, i, d] *= inverse


@compiled
def differentiate(
    Q: Array, K: Array, V: Array, real: Array, counts: Array, selected: Array, scale: float,
    means: Array, out: Array, lse: Array, grad: Array, grad_q: Array, grad_k: Array, grad_v: Array,
) -> None:  # fmt: skip
    """Write the gradients of `attend`, `(X, T, C)` each, for that of its output, `grad`.

    With P the weights, D_i = grad_i . out_i: dS = P (grad V^T - D), dQ = dS K scale,
    dK = dS^T Q scale, dV = P^T grad; for the coarse part see `_differentiate_coarse`.
    """
    num_blocks, tokens, columns = Q.shape
    full = means.size > 0
    factor = Q.dtype.type(scale * math.log2(math.e))
    weights, slopes = np.empty((tokens, tokens), Q.dtype), np.empty((tokens, tokens), Q.dtype)
    query, towards = np.empty((columns, tokens), Q.dtype), np.empty((columns, tokens), Q.dtype)
    inner, scaled = np.empty(tokens, Q.dtype), np.empty((tokens, columns), Q.dtype)
    mean_grads = np.zeros_like(means)
    for x in range(num_blocks):
        for i in range(tokens):
            for d in range(columns):
                grad_q[x, i, d] = grad_k[x, i, d] = grad_v[x, i, d] = 0

    for x in range(num_blocks):
        _transpose(Q[x], factor, query)
        _transpose(grad[x], Q.dtype.type(1), towards)
        for i in range(tokens):
            product = Q.dtype.type(0)
            for d in range(columns):
                product += grad[x, i, d] * out[x, i, d]
            inner[i] = product
        for y in range(num_blocks):
            if not selected[x, y]:
                continue
            multiply(weights, K[y], query, False)
            multiply(slopes, V[y], towards, False)
            for j in range(tokens):
                if j < real.shape[1] and real[y, j]:
                    for i in range(tokens):
                        weight = exp2(weights[j, i] - lse[x, i])
                        weights[j, i] = weight
                        slopes[j, i] = (slopes[j, i] - inner[i]) * weight * scale
                else:
                    for i in range(tokens):
                        weights[j, i] = slopes[j, i] = 0
            multiply(grad_v[y], weights, grad[x], True)
            multiply(grad_k[y], slopes, Q[x], True)
            multiply(grad_q[x], slopes.T, K[y], True)
        if full and counts[x]:
            _differentiate_coarse(
                x, counts, selected[x], scale, means, lse[x], grad[x], inner, mean_grads
            )
    if full:
        for x in range(num_blocks):
            count = max(counts[x], 1)
            for i in range(tokens):
                for d in range(columns):
                    grad_q[x, i, d] += mean_grads[0, x, d] / count
                    grad_k[x, i, d] += mean_grads[1, x, d] / count
                    grad_v[x, i, d] += mean_grads[2, x, d] / count


@compiled
def _differentiate_coarse(
    x: int, counts: Array, selected: Array, scale: float, means: Array, lse: Array, grad: Array,
    inner: Array, mean_grads: Array,
) -> None:  # fmt: skip
    """Add what the block means get from block row `x` to `mean_grads` `(3, X, C)`.

    With w_i the weight of a logit 0 and W_y that of block y relative to it,
    U = sum of w_i grad_i, T = sum of w_i D_i: dL_y = W_y (U . vm_y - T) scale, dqm = dL km,
    dkm_y = dL_y qm, dvm_y = W_y U.
    """
    columns = means.shape[2]
    logits, pooled = np.empty(len(counts), means.dtype), np.zeros(columns, means.dtype)
    factor = means.dtype.type(scale * math.log2(math.e))
    top = means.dtype.type(_coarse_logits(means[0, x], means[1], counts, selected, factor, logits))
    if top == FLOOR:
        return
    pooled_inner = means.dtype.type(0)
    for i in range(len(lse)):
        share = exp2(top - lse[i])
        pooled_inner += share * inner[i]
        for d in range(columns):
            pooled[d] += share * grad[i, d]
    for y in range(len(counts)):
        weight = exp2(logits[y] - top)
        if weight == 0:
            continue
        slope = -pooled_inner
        for d in range(columns):
            slope += pooled[d] * means[2, y, d]
        slope *= weight * scale
        for d in range(columns):
            mean_grads[0, x, d] += slope * means[1, y, d]
            mean_grads[1, y, d] += slope * means[0, x, d]
            mean_grads[2, y, d] += weight * pooled[d]
