"""S5, a diagonal state space with many inputs and outputs (Smith et al. 2023, arXiv 2208.04933).

Axes: B batch, L length, H channels (the model width), N states, P = N / 2 modes, C directions.
"""

import math
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.diagonal_system import Recurrence, diagonal_system
from models.discretisation import discretise
from models.heads import AttentionShape
from models.initialisation import truncated_normal_
from models.legs import legs_spectrum
from models.linear_recurrence import linear_recurrence, linear_recurrence_reference
from models.options import above, divisor, even, one_of, rising

Basis = NDArray[np.complex128]
CInit = Literal["lecun_normal", "trunc_standard_normal", "complex_normal"]

# Largest real part that `clip` allows.
MAX_REAL_PART = -1e-4


class S5(nn.Module):
    """Run a diagonal system that is initialised from blocks of HiPPO-LegS.

    y = 2 Re(C x) + D u, x[t] = exp(Lambda dt) x[t-1] + Bbar u[t] by zero-order hold. Both
    directions share Lambda, B and dt, have their own C, and see the present. Masked positions
    enter as zeros. The layer runs in float32 regardless of autocast.

    Args:
        shape: Sizes; `heads` and `dropout` have no effect.
        states: Even number of states N: N / 2 complex modes stand for as many conjugate pairs.
        blocks: Number of times that the spectrum of a LegS with N / blocks states is repeated.
        c_init: Initialisation of C, with the names of the released code: `lecun_normal` divides the
            variance by N H, in keeping with the shape in which it is drawn; `trunc_standard_normal`
            divides it by N; `complex_normal` is a standard complex normal that is not transformed
            into the eigenbasis.
        step_min: Smallest initial dt, in positions.
        step_max: Largest initial dt; dt is log-uniform between the two.
        clip: Keep the real parts of Lambda at -1e-4 or below; otherwise nothing keeps the system
            stable.
        bidirectional: Whether a position also sees later ones.
        as_released: Let padding through, as the released code does: masked input then reaches real
            positions.

    Raises:
        ValueError: A value is out of range; the message names the option.
    """

    memory_growth = 1
    parameter_roles = {"real": "A", "imag": "A", "step": "dt", "b": "B", "c": "C"}

    @property
    def pad_invariant(self) -> bool:
        """Whether the amount of padding changes nothing."""
        return not (self.as_released and len(self.c) > 1)

    def __init__(
        self,
        shape: AttentionShape,
        *,
        states: int = 256,
        blocks: int = 8,
        c_init: CInit = "lecun_normal",
        step_min: float = 0.001,
        step_max: float = 0.1,
        clip: bool = False,
        bidirectional: bool = True,
        as_released: bool = False,
    ) -> None:
        super().__init__()
        even(states=states)
        divisor(states // 2, blocks=blocks)
        one_of(get_args(CInit), c_init=c_init)
        above(0, step_min=step_min)
        rising(step_min=step_min, step_max=step_max)
        self.clip, self.as_released = clip, as_released
        frequency, vectors = legs_spectrum(states // blocks)
        # The half with negative frequencies, as published; its vectors are the conjugates.
        imag = torch.tensor(-frequency, dtype=torch.get_default_dtype()).repeat(blocks)
        basis: Basis = np.kron(np.eye(blocks), vectors.conj()).astype(np.complex128)  # (N, P)
        self.real, self.imag = nn.Parameter(torch.full_like(imag, -0.5)), nn.Parameter(imag)
        steps = torch.empty(states // 2).uniform_(math.log(step_min), math.log(step_max))
        self.step = nn.Parameter(steps)
        b = truncated_normal_(torch.empty(states, shape.dim), states**-0.5)
        self.b = nn.Parameter(_times(b.T, basis.conj()).transpose(0, 1).contiguous())
        directions = 2 if bidirectional else 1
        c = [initial_c(c_init, shape.dim, states, basis) for _ in range(directions)]
        self.c = nn.Parameter(torch.stack(c))
        self.d = nn.Parameter(torch.randn(shape.dim))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Transform `x` `(B, L, H)`; `mask` `(B, L)` bool or None."""
        return self._run(x, mask, linear_recurrence).to(x.dtype)

    def reference(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute `forward` with the recurrence step by step."""
        return self._run(x, mask, linear_recurrence_reference)

    def _run(self, x: Tensor, mask: Tensor | None, recurrence: Recurrence) -> Tensor:
        if mask is not None and not self.as_released:
            x = x.masked_fill(~mask[..., None], 0.0)
        factors, gain = self.discrete()
        b = torch.view_as_complex(self.b) * gain[:, None]
        c = 2 * torch.view_as_complex(self.c)
        return diagonal_system(x, factors, b, c, recurrence) + self.d * x

    def discrete(self) -> tuple[Tensor, Tensor]:
        """Return exp(Lambda dt) and (exp(Lambda dt) - 1) / Lambda, complex `(P,)`."""
        real = self.real.clamp(max=MAX_REAL_PART) if self.clip else self.real
        log_factors, gain = discretise(torch.complex(real, self.imag), self.step.exp())
        return log_factors.exp(), gain


def initial_c(kind: CInit, dim: int, states: int, basis: Basis) -> Tensor:
    """Draw C `(H, P, 2)`, as real and imaginary parts."""
    if kind == "complex_normal":
        drawn: Tensor = torch.randn(dim, states // 2, 2) * 0.5**0.5
        return drawn
    variance = states * dim if kind == "lecun_normal" else states
    parts = truncated_normal_(torch.empty(2, dim, states), variance**-0.5)
    real, imag = (_times(part, basis) for part in parts)
    turned: Tensor = torch.stack([real[..., 0] - imag[..., 1], real[..., 1] + imag[..., 0]], -1)
    return turned


def _times(x: Tensor, basis: Basis) -> Tensor:
    """Multiply a real `(H, N)` by a complex `(N, P)`; return both parts as `(H, P, 2)`."""
    parts = [torch.tensor(part, dtype=x.dtype) for part in (basis.real, basis.imag)]
    return torch.stack([x @ part for part in parts], -1)
