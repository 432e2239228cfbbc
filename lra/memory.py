"""Peak memory of a cell and of a single call, and that of its tensors, counted and not measured.

For a cell, it is what the GPU's allocator held or, on the CPU, what the process held.
"""

import contextlib
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def reset(device: torch.device) -> None:
    """Forget the peak so far, so that the next cell of a sweep is measured on its own."""
    if device.type == "cuda":
        # A GPU that is named by its index has no allocator to reset before its first tensor.
        torch.cuda.init()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.cuda.reset_peak_memory_stats(device)
        return
    # Linux: "5" resets the high-water mark of resident memory to what is resident now.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """Return the peak since `reset`, in bytes.

    On the CPU, it is the resident memory of the whole process, libraries and data included.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return _peak_of_process()


def _peak_of_process() -> int:
    """Return the most bytes that the process ever held, on systems without /proc."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    # Bytes on macOS, KiB on other systems.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def total(device: torch.device) -> int:
    """Return the bytes that a process may use on the GPU, or on the machine or in its container."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    machine = int(psutil.virtual_memory().total)
    # The limit of a container or of a job's share of a machine, if there is one ("max": none).
    with contextlib.suppress(OSError, ValueError):
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return machine


def peak_of(step: Callable[[], object], device: torch.device) -> int:
    """Return the bytes of tensors that a call adds, at its peak, to those alive before it.

    On the CPU, torch's profiler reports every allocation. The size of the process would say little,
    because the process keeps freed memory.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type == "mps":
        return _growth_on_mps(step)
    activities = [ProfilerActivity.CPU]
    with _stderr_closed(), profile(activities=activities, profile_memory=True) as profiler:
        step()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = profiler.profiler.kineto_results.events()
    changes: list[tuple[int, int]] = sorted(
        (e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"
    )
    return max(accumulate((size for _, size in changes), initial=0))


def _growth_on_mps(step: Callable[[], object]) -> int:
    """Return how much a call makes the allocator of Apple's GPU grow; it records no peak."""
    torch.mps.synchronize()
    torch.mps.empty_cache()
    before = torch.mps.driver_allocated_memory()
    step()
    torch.mps.synchronize()
    return int(torch.mps.driver_allocated_memory() - before)


@contextlib.contextmanager
def _stderr_closed() -> Iterator[None]:
    """Keep the profiler from reporting starts, stops and missed earlier events on stderr."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's stub
    """Count the bytes of the storages that operators return, for as long as they are alive.

    The count is the same on every machine. Memory that an operator uses internally is not seen;
    views share a storage, which counts once.

    Args:
        given: Tensors that existed before; they and their views do not count.
    """

    def __init__(self, *given: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's stub
        self.peak: int = 0
        self._alive = {tensor.untyped_storage()._cdata: 0 for tensor in given}
        self._given = given

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._alive:
            self._alive[storage._cdata] = storage.nbytes()
            weakref.finalize(storage, self._alive.pop, storage._cdata)
            self.peak = max(self.peak, sum(self._alive.values()))
