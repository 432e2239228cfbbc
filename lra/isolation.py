"""Isolate cells: none leaves a trace in the process for the next cell of a sweep to find."""

import gc
import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from lra.seeds import derive


@contextmanager
def settings_restored() -> Iterator[None]:
    """Restore on exit what a user's code may change for the whole process.

    These are torch's default type and device, threads, determinism, precision of matrix products,
    gradient mode, treatment of denormal numbers and random generators; the generators of Python and
    numpy, what numpy does on overflow, the working folder, the environment, `sys.path`, the
    recursion limit, garbage collection, and the settings of logging and warnings.
    """
    dtype, device, threads = (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.get_num_threads(),
    )
    deterministic = _determinism()
    precision, gradients = torch.get_float32_matmul_precision(), torch.is_grad_enabled()
    anomalies = torch.is_anomaly_enabled()
    cudnn = (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic)
    drawn = random.getstate(), np.random.get_state(), torch.get_rng_state()
    folder, path, environment = os.getcwd(), list(sys.path), dict(os.environ)
    flushed, overflow = _flushes_to_zero(), np.geterr()
    recursion, collects = sys.getrecursionlimit(), gc.isenabled()
    logged_above = logging.root.manager.disable
    try:
        with warnings.catch_warnings():
            yield
    finally:
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            # Any device that is set, even the CPU, sends every call to torch through a hook.
            torch.set_default_device(None if device.type == "cpu" else device)
        torch.set_num_threads(threads)
        if _determinism() != deterministic:
            # This imports torch's compiler, which fails if a signal has interrupted its import.
            torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        torch.set_float32_matmul_precision(precision)
        torch.set_grad_enabled(gradients)
        torch.autograd.set_detect_anomaly(anomalies)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn
        random.setstate(drawn[0])
        np.random.set_state(drawn[1])
        torch.set_rng_state(drawn[2])
        torch.set_flush_denormal(flushed)
        np.seterr(**overflow)
        os.chdir(folder)
        sys.path[:] = path
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        sys.setrecursionlimit(recursion)
        (gc.enable if collects else gc.disable)()
        logging.disable(logged_above)


def _determinism() -> tuple[bool, bool]:
    """Return whether torch uses deterministic algorithms, and whether it only warns of others."""
    enabled = torch.are_deterministic_algorithms_enabled()
    return enabled, torch.is_deterministic_algorithms_warn_only_enabled()


def _flushes_to_zero() -> bool:
    """Return whether this thread flushes denormal numbers to zero; torch has no query for that."""
    smallest = torch.finfo(torch.float32).tiny
    return bool(torch.full((), smallest, dtype=torch.float32, device="cpu") / 2 == 0)


def seed_others(seed: int) -> None:
    """Seed the generators that the suite does not use, for a user's code that does."""
    random.seed(derive(seed, "python"))
    np.random.seed(derive(seed, "numpy") % 2**32)
