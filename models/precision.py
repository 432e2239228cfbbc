"""Arithmetic that stays in float32 where autocast would use a shorter type."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """Return `x` in at least float32: float64 stays, shorter types become float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which no autocast rounds products on the device of `x`."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def unrounded(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which nothing rounds convolutions on the device of `x`, cuDNN included.

    By default, cuDNN uses only 10 bits of a float32 (TF32). This context controls neither compiled
    code nor autograd's own backward: both follow `torch.backends.cudnn.conv.fp32_precision`.
    """
    if not x.is_cuda or torch.compiler.is_compiling():
        return without_autocast(x)
    return _ieee_convolutions(x)


@contextmanager
def _ieee_convolutions(x: Tensor) -> Iterator[None]:
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # made at run time
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"
    try:
        with without_autocast(x):
            yield
    finally:
        convolutions.fp32_precision = before
