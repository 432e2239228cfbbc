"""Floating-point operations of a step, counted on the `meta` device without computing.

Products, convolutions and attention are counted as by torch's `FlopCounterMode`, with a
multiplication and an addition as one operation each. It has no formula for an FFT: here, an FFT of
n complex numbers counts as the customary 5 n log2(n) operations, or half of that if the input or
the output is real. Elementwise operations count as zero, as in `FlopCounterMode`.
"""

import copy
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.shared_kernel import kernels_shared


def _fft(size: Sequence[int], dims: Sequence[int], each: float) -> int:
    length = math.prod(size[dim] for dim in dims)
    return round(each * math.prod(size) * math.log2(max(2, length)))


def _complex(size: Sequence[int], dims: Sequence[int], *rest: Any, **more: Any) -> int:
    return _fft(size, dims, 5.0)


def _from_real(size: Sequence[int], dims: Sequence[int], *rest: Any, **more: Any) -> int:
    return _fft(size, dims, 2.5)


def _to_real(
    size: Sequence[int], dims: Sequence[int], *rest: Any, out_shape: Any, **more: Any
) -> int:
    return _fft(out_shape, dims, 2.5)


FFTS = {
    torch.ops.aten._fft_c2c: _complex,
    torch.ops.aten._fft_r2c: _from_real,
    torch.ops.aten._fft_c2r: _to_real,
}


def counter() -> FlopCounterMode:
    """Return a context manager that counts the operations within it, FFTs included."""
    return FlopCounterMode(display=False, custom_mapping=FFTS)


def training_flops(model: nn.Module, *shapes: Sequence[int]) -> int:
    """Return the operations of forward and backward passes on batches without padding.

    Args:
        model: A classifier; it is left where and as it is.
        shapes: Shapes of the tokens, `(B, N)` or `(B, 2, N)`, of the micro-batches of an update.
    """
    there = copy.deepcopy(model).to("meta").train()
    # A kernel that micro-batches share is computed once.
    shared = kernels_shared(there) if len(shapes) > 1 else nullcontext()
    with counter() as counted, shared:
        for shape in shapes:
            there(torch.empty(*shape, dtype=torch.int64, device="meta"), None).sum().backward()
    flops: int = counted.get_total_flops()
    return flops


def inference_flops(model: nn.Module, shape: Sequence[int]) -> int:
    """Return the operations of a forward pass in evaluation; see `training_flops`."""
    there = copy.deepcopy(model).to("meta").eval()
    with counter() as counted, torch.inference_mode():
        there(torch.empty(*shape, dtype=torch.int64, device="meta"), None)
    flops: int = counted.get_total_flops()
    return flops
