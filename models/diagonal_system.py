"""A diagonal linear system with many inputs and outputs, as in LRU and S5.

x[t] = a x[t - 1] + b u[t], y[t] = Re(c x[t]), with complex states. If there are two directions, the
second one reads the same inputs from the end; both see the present.

Axes: B batch, L length, H channels, N states, C directions.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from models.linear_recurrence import linear_recurrence
from models.precision import full_precision, without_autocast

Recurrence = Callable[[Tensor, Tensor, bool], Tensor]


def diagonal_system(
    u: Tensor, a: Tensor, b: Tensor, c: Tensor, recurrence: Recurrence = linear_recurrence
) -> Tensor:
    """Run a system over `u`, in at least float32.

    Args:
        u: `(B, L, H)`.
        a: Factors of the states `(N,)`, complex.
        b: `(N, H)`, complex.
        c: `(C, H, N)`, complex; the second direction runs from the end to the start.
        recurrence: Computes the states from factors and inputs.

    Returns:
        `(B, L, H)`.
    """
    # Products with complex matrices, as real ones with real and imaginary parts side by side.
    into = torch.view_as_real(b).transpose(1, 2).flatten(0, 1)  # (2 N, H)
    out = torch.stack([c.real, -c.imag], -1).flatten(2)  # (C, H, 2 N)
    with without_autocast(u):
        pairs = (full_precision(u) @ into.mT).view(*u.shape[:2], -1, 2)  # (B, L, N, 2)
        inputs = torch.view_as_complex(pairs)
        y = _read(recurrence(a, inputs, False), out[0])
        if len(c) > 1:
            y = y + _read(recurrence(a, inputs, True), out[1])
    return y


def _read(states: Tensor, out: Tensor) -> Tensor:
    return torch.view_as_real(states).flatten(2) @ out.mT
