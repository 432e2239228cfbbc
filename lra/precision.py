"""Mixed precision: autocast, and the loss scaling that float16 needs."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from lra.config import resolve_precision


class NotFiniteError(RuntimeError):
    """The loss, a parameter or an answer became infinite or NaN."""


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Compute in `precision`, as `TrainConfig` explains: by autocast, except for float32."""
    halves = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    half = halves.get(resolve_precision(precision, device.type))
    # For float32, autocast is not entered at all, not even switched off: the meta device has none.
    # On the CPU, threads would share a cache of rounded weights, and empty it for each other.
    cached = device.type != "cpu"
    with torch.autocast(device.type, half, cache_enabled=cached) if half else nullcontext():
        yield


def scaler_for(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Return the loss scaler of a precision; for all but float16, it passes everything through."""
    scaled = resolve_precision(precision, device.type) == "float16"
    return torch.amp.GradScaler(device.type, enabled=scaled)
