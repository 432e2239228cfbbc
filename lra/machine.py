"""The machine that a cell runs on, the code that runs there, and the clock that times it."""

import functools
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from lra import stamp
from lra.config import ConfigError
from lra.paths import PACKAGES, ROOT

# More threads than processors only slow a run down, but they reproduce the bits of a machine that
# has that many processors.
MAX_THREADS_A_PROCESSOR = 16


def resolve_threads(threads: int) -> int:
    """Return the number of threads, unless it is far too large.

    Raises:
        ConfigError: There are far more threads than the machine has processors for.
    """
    processors = os.cpu_count() or 1
    if threads > (most := MAX_THREADS_A_PROCESSOR * processors):
        raise ConfigError(
            f"threads={threads}: this machine has {processors} processors; must be at most {most}"
        )
    return threads


def resolve_device(name: str) -> torch.device:
    """Return the device; `auto` is a GPU if there is one.

    Raises:
        ConfigError: There is no such device, or no GPU with that index.
    """
    # Never choose Apple's GPU unasked: it lacks float64 and complex operators that backends use.
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name}: must be auto, cpu, cuda, cuda:<index> or mps") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={name}: torch sees {torch.cuda.device_count()} GPUs")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device={name}: torch sees no Apple GPU here")
    return device


def processor() -> str:
    """Return the processor's model name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine(device: torch.device) -> str:
    """Return the name of the processor or GPU."""
    cuda = device.type == "cuda"
    return torch.cuda.get_device_name(device) if cuda else processor()


def described(device: torch.device) -> str:
    """Return what rounding depends on besides code and threads: the processor or GPU, and torch."""
    return f"{machine(device)}, torch {torch.__version__}"


@functools.cache
def code_version(root: Path = ROOT) -> tuple[str, bool]:
    """Return the git commit of the code, and whether the code differs from it.

    Both are as of the first call. The commit is empty if it is unknown.

    Args:
        root: Top of the repository, or the folder of the installed package's own files.
    """
    return stamp.version(root, PACKAGES if root == ROOT else root)


def code_name() -> str:
    """Return the version of the code in words: its commit, and whether the code differs from it."""
    return stamp.version_text(*code_version())


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds_of(step: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that one call takes on a device."""
    synchronise(device)
    started = time.perf_counter()
    step()
    synchronise(device)
    return time.perf_counter() - started


def interleaved(
    steps: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device,
    warmup: int = 1,
) -> dict[str, float]:
    """Time functions in turn, so that a busy moment of the machine affects all of them.

    Args:
        steps: Functions by name.
        repeats: Number of timed calls of each.
        device: Where they compute.
        warmup: Number of calls of each before the first timed one.

    Returns:
        Median seconds per call, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(warmup + repeats):
        for name, step in steps.items():
            taken = seconds_of(step, device)
            if repeat >= warmup:
                seconds[name].append(taken)
    return {name: statistics.median(times) for name, times in seconds.items()}
