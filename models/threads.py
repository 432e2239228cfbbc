"""Work distributed among Python threads that use one core each.

The threads are waited for only at the end. Threads inside each of many small operations would wait
for each other at every operation, and for a whole time slice whenever another process holds a core.
The work has to run without the GIL, as torch's and compiled kernels do.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

_starting = threading.Lock()


def workers(threads: int) -> ThreadPoolExecutor:
    """Return `threads` Python threads of this process whose operations use one core each."""
    with _starting:
        return _workers(os.getpid(), threads)


@cache
def _workers(process: int, threads: int) -> ThreadPoolExecutor:
    """Start the threads, in one pool per process."""
    barrier = threading.Barrier(threads + 1)

    def start() -> None:
        # Torch copies its thread count to a thread on first use; only what is set after that
        # stays this thread's own.
        torch.get_num_threads()
        torch.set_num_threads(1)
        barrier.wait()

    pool = ThreadPoolExecutor(threads, "lra")
    for _ in range(threads):
        pool.submit(start)
    barrier.wait()
    # The count that future threads will copy was changed above.
    torch.set_num_threads(threads)
    return pool


def over_heads(run: Callable[[int, int], None], heads: int, size: int) -> None:
    """Call `run(start, stop)` for slices of `size` heads, on as many threads as torch may use.

    `run` writes to its own slice of tensors made beforehand, so that it does not matter which
    thread takes which slice: the same `size` gives the same bits.
    """
    slices = [(start, min(start + size, heads)) for start in range(0, heads, size)]
    # The count is different while a pool starts.
    with _starting:
        threads = torch.get_num_threads()
        pool = _workers(os.getpid(), threads) if threads > 1 else None
    if pool is None or len(slices) == 1:
        for start, stop in slices:
            run(start, stop)
        return

    def task(bounds: tuple[int, int]) -> None:
        # Grad mode and the like are per thread; inference mode records nothing and may
        # write to tensors of either kind.
        with torch.inference_mode():
            run(*bounds)

    list(pool.map(task, slices))
