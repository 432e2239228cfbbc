"""Dropout of activations on one CPU core, compiled by numba; `models/dropout.py` calls it."""

import numpy as np

from models.compiled import Array, compiled, random_bits, row_key


@compiled
def drop_rows(
    x: Array, seed: int, threshold: int, factor: float, row_length: int, out: Array
) -> None:
    """Write `x` `(n,)` times a factor to `out`, or 0 if an element's random bits are too small.

    Args:
        x: Contiguous, like `out`.
        seed: Seed of the random bits; element i is column i mod `row_length` of row
            i // `row_length`.
        threshold: The smallest value of 32 random bits that keeps an element.
        factor: The factor by which kept elements are multiplied.
        row_length: Elements per row, below 2^32.
        out: The output `(n,)`.
    """
    assert len(x) == len(out)
    factor, least = x.dtype.type(factor), np.uint32(threshold)
    for row in range(-(-len(x) // row_length)):
        key = row_key(seed, row)
        first, second = np.uint32(key), np.uint32(key >> np.uint64(32))
        # Slices, so that no index can be negative, for which numba would check.
        given = x[row * row_length : (row + 1) * row_length]
        dropped = out[row * row_length : (row + 1) * row_length]
        for column in range(len(given)):
            kept = random_bits(np.uint32(column), first, second) >= least
            dropped[column] = given[column] * factor if kept else x.dtype.type(0)
