"""Peak memory of a cell: the GPU's allocator, or the process where it runs on the CPU."""

import contextlib
import resource
import sys
from pathlib import Path

import torch


def reset(device: torch.device) -> None:
    """Forget the peak so far, so that the next cell of a sweep is measured by itself."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    # Linux: "5" sets the high-water mark of resident memory back to what is resident now.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """Return the peak since `reset`, in bytes.

    On the CPU it is the resident memory of the whole process, libraries and data included.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    # Elsewhere the peak of the whole process: bytes on macOS, KiB on other systems.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
