"""Arithmetic that stays in float32 where autocast would shorten it."""

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """Return `x` in float32 at least: float64 stays, shorter types become float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
