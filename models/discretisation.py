"""Discretisation of a continuous system, x' = a x + b u, to x[t] = A x[t-1] + B u[t]."""

from typing import Literal

import torch
from torch import Tensor

Discretisation = Literal["zoh", "bilinear"]


def discretise(a: Tensor, step: Tensor, method: Discretisation = "zoh") -> tuple[Tensor, Tensor]:
    """Discretise diagonal systems.

    Args:
        a: Complex, of any shape; its real parts are negative if the system is stable.
        step: dt, real, of a shape that broadcasts with `a`.
        method: `zoh`, zero-order hold: A = exp(dt a), B = (A - 1) / a b, exact for inputs that are
            constant between samples. `bilinear`: A = (1 + dt a / 2) / (1 - dt a / 2), B = dt b /
            (1 - dt a / 2).

    Returns:
        log A, and B / b.
    """
    z = step * a
    if method == "zoh":
        return z, _expm1(z) / a
    return torch.log((1 + z / 2) / (1 - z / 2)), step / (1 - z / 2)


def _expm1(z: Tensor) -> Tensor:
    """Compute exp(z) - 1 without cancellation near 0; torch only has it for real numbers."""
    real = torch.expm1(z.real) * z.imag.cos() - 2 * (z.imag / 2).sin().square()
    return torch.complex(real, z.real.exp() * z.imag.sin())
