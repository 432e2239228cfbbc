"""A cell leaves no trace in the process: the next one of a sweep finds it as the first one did."""

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
    gradient mode and generators, those of Python and numpy, the working folder, `sys.path` and
    the filters of warnings.
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
    folder, path = os.getcwd(), list(sys.path)
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
        os.chdir(folder)
        sys.path[:] = path


def seed_others(seed: int) -> None:
    """Seed the generators that the suite does not use, for code of a user that does."""
    random.seed(derive(seed, "python"))
    np.random.seed(derive(seed, "numpy") % 2**32)
