"""A cell leaves no trace in the process: the next one of a sweep finds it as the first one did."""

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
    """Put back on leaving what code of a user may change for the whole process.

    That is torch's default type and device, threads, determinism, precision of matrix products,
    gradient mode, numbers next to zero and generators, those of Python and numpy, what numpy does
    at an overflow, the working folder, the environment, `sys.path`, the limit of recursion, the
    collection of garbage, and what is logged and warned of.
    """
    dtype, device, threads = (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.get_num_threads(),
    )
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
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
            # Any that is set, the CPU too, makes every call of torch pass through a hook.
            torch.set_default_device(None if device.type == "cpu" else device)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
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


def _flushes_to_zero() -> bool:
    """Tell whether this thread takes numbers next to zero for zero; torch does not say."""
    smallest = torch.finfo(torch.float32).tiny
    return bool(torch.full((), smallest, dtype=torch.float32, device="cpu") / 2 == 0)


def seed_others(seed: int) -> None:
    """Seed the generators that the suite does not use, for code of a user that does."""
    random.seed(derive(seed, "python"))
    np.random.seed(derive(seed, "numpy") % 2**32)
