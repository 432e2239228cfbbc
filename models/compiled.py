"""What the compiled CPU kernels share: compilation, products, exponentials, random bits.

Files named `*_kernel.py` import this module, and so does `mra_blocks.py`. All of them are imported
only when they are first called, so that a machine that computes on a GPU does not need numba.
"""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., object])
Array = NDArray[Any]

# Bytes per vector. A processor with shorter vectors uses several: correct, but slower.
VECTOR = 64
# Rows of a tile: with two vectors each, its sums fill half of AVX-512's 32 registers. The number of
# float64 values in a vector must be a multiple of this.
ROWS = 8
# Stands in for minus infinity, so that the difference of two of them is not NaN.
FLOOR = -1e30
# What LLVM may assume. It may not assume that everything is finite.
FREEDOM = {"reassoc", "contract", "arcp", "nsz"}
# The functions here are compiled into functions of other files, but numba's cache on disk notices
# only edits of a function's own file. So the names of those functions contain this file's edition.
EDITION = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]


def compiled(function: Function) -> Function:
    """Compile a function on its first call, cache it on disk, and run it without the GIL.

    If numba finds no folder that it can write to, nothing is cached and every process compiles
    again. Sums may be added up in any order; the same machine gives the same bits. Values that are
    not finite stay so, and a check of the loss will find them.
    """
    function.__qualname__ += f"_{EDITION}"
    options = {"nogil": True, "fastmath": FREEDOM}
    try:
        return cast(Function, numba.njit(cache=True, **options)(function))
    except RuntimeError:
        return cast(Function, numba.njit(**options)(function))


def _address(context: Any, builder: Any, kind: Any, array: Any) -> Callable[[Any, Any], Any]:
    """Return a function from the row and column of an item of a matrix to its address."""
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
    """Compute a tile of a product, ROWS rows by `num` vectors, with its sums in registers.

    Given three loops, a compiler keeps the sums in memory, at less than half the speed. This
    function builds the instructions for the loops below, with r over the ROWS rows from `row` and
    v over the `num` vectors from `column`. Both of these loops are unrolled, so that only the one
    over k is left:

        sums[r, v] = c[r, v] if add else 0
        for k in range(len(b)):
            right[v] = b[k, v]              # loaded once, for all rows
            for r in rows:
                left = a[r, k] in every place of a vector
                for v in vectors:
                    sums[r, v] += left * right[v]
        c[r, v] = sums[r, v]
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
        nothing = ir.Constant(vector, ir.Undefined)
        new: list[Any] = []
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

    if not c.dtype == a.dtype == b.dtype:
        raise numba.TypingError(f"blocks must have one type, not {c.dtype}, {a.dtype}, {b.dtype}")
    return types.void(num, c, types.intp, types.intp, a, b, types.boolean), generate


@compiled
def multiply(c: Array, a: Array, b: Array, add: bool) -> None:
    """Write `a` `(m, k)` times `b` `(k, n)` to `c` `(m, n)`, or add it to `c`.

    Rows of `b` and `c` are contiguous; m is a multiple of ROWS, n of the length of a vector.
    """
    lanes = VECTOR // c.itemsize
    # A tile writes to memory directly: shapes that do not match would overwrite what lies beyond.
    assert c.shape == (a.shape[0], b.shape[1]) and a.shape[1] == b.shape[0]
    assert c.shape[0] % ROWS == 0 and c.shape[1] % lanes == 0
    assert c.strides[1] == c.itemsize and b.strides[1] == b.itemsize
    for row in range(0, c.shape[0], ROWS):
        column = 0
        while column + 2 * lanes <= c.shape[1]:
            _tile(2, c, row, column, a, b, add)
            column += 2 * lanes
        if column < c.shape[1]:
            _tile(1, c, row, column, a, b, add)


@intrinsic  # type: ignore[untyped-decorator]  # numba has no types
def exp2(typing: Any, x: Any) -> Any:
    """Compute 2^x for x <= 0 or NaN, using operations that vectorise.

    With n the integer nearest to x, 2^(x - n) is computed from its Taylor series, accurate up to
    the last bit or two. The result is 0 if n is below the exponents of normal numbers.
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
def transpose(block: Array, factor: float, transposed: Array) -> None:
    """Write `block` `(m, n)` times a factor to `transposed` `(n, m)`."""
    for d in range(block.shape[1]):
        for i in range(block.shape[0]):
            transposed[d, i] = block[i, d] * factor


@intrinsic  # type: ignore[untyped-decorator]  # numba has no types
def random_bits(typing: Any, column: Any, first: Any, second: Any) -> Any:
    """Hash a column of a row to 32 random bits, using operations that vectorise.

    Args:
        typing: Supplied by numba.
        column: Column number, uint32 like both keys.
        first: The row's first key, see `row_key`.
        second: The row's second key.

    The hash is triple32 of github.com/skeeto/hash-prospector, found by a search for a permutation
    whose output bits flip half the time when an input bit does. The keys enter before its first and
    its second round. `models.dropout.kept_reference` is its plain form.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        bits, first, second = arguments

        def folded(bits: Any, shift: int) -> Any:
            return builder.xor(bits, builder.lshr(bits, word(shift)))

        bits = folded(builder.xor(bits, first), 17)
        bits = folded(builder.mul(bits, word(0xED5AD4BB)), 11)
        bits = builder.mul(builder.xor(bits, second), word(0xAC4C1B51))
        bits = builder.mul(folded(bits, 15), word(0x31848BAB))
        return folded(bits, 14)

    return types.uint32(types.uint32, types.uint32, types.uint32), generate


@compiled
def row_key(seed: int, row: int) -> Any:
    """Return a row's uint64 key: low half the first key of `random_bits`, high half the second.

    It is output number `row` of the generator SplitMix64 (Steele, Lea and Flood 2014), started from
    `seed`.
    """
    key = np.uint64(seed) + np.uint64(row + 1) * np.uint64(0x9E3779B97F4A7C15)
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))
