"""Compile an inner loop with numba.

Compiled functions that call each other must be in the same file: numba's cache on disk notices an
edit of the file that contains a function, but not of the files that it calls into. In compiled
functions, copies are written as loops (`a[:] = b` is several times slower for small arrays).
"""

from collections.abc import Callable
from typing import TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Compile a function on its first call, cache it on disk, and run it without the GIL.

    The cache is beside this file, or else in the user's cache folder; if numba can write to
    neither, nothing is cached and every process compiles again. `fastmath` is off, so sums are
    added in the order written, the same on every machine.
    """
    try:
        return cast(Function, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:
        return cast(Function, numba.njit(nogil=True)(function))
