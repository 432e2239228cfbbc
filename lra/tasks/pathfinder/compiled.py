"""Compile an inner loop with numba.

Compiled functions that call each other live in one file: numba's cache on disk notices an edit of
the file that a function is in, not of the files that it calls into. In them, copies are loops
(`a[:] = b` is several times slower for small arrays).
"""

from collections.abc import Callable
from typing import TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Compile a function on its first call, keep it on disk, and run it without Python's lock.

    Beside this file, else in the user's cache folder; where numba can write to neither, nothing is
    kept, and every process compiles anew. Without `fastmath`: sums are added up in the order
    written, the same on every machine.
    """
    try:
        return cast(Function, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:
        return cast(Function, numba.njit(nogil=True)(function))
