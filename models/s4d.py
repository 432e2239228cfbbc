"""S4D, the diagonal state-space layer (Gu et al. 2022, arXiv 2206.11893; S4 repository, v4).

Every channel is a linear system with N / 2 complex modes, which amounts to a convolution with a
kernel as long as the sequence. Conventions follow the released `SSMKernelDiag` and `FFTConv`.

Axes: B batch, L length, H channels (the model width), N states, n = N / 2 modes, C directions.
"""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.discretisation import Discretisation, discretise
from models.dropout import Dropout
from models.geometric_sums import geometric_sums
from models.heads import AttentionShape
from models.legs import legs_spectrum
from models.linear_recurrence import linear_recurrence_reference
from models.long_convolution import convolve
from models.options import above, divisor, even, one_of, rising
from models.shared_kernel import SharedKernel

Init = Literal["lin", "inv", "legs"]
StepTransform = Literal["exp", "softplus"]

MIN_STEP = 1e-4


class S4D(nn.Module):
    """Convolve each channel with the kernel of a diagonal linear system and add a skip D u.

    With z = dt A, the kernel is K[t] = 2 Re sum_n C[n] Bbar[n] Abar[n]^t. Both directions share dt,
    A and B, and have their own C; the kernel of the future begins at lag 1, as published. Masked
    positions enter as zeros. There is no projection: mixing channels is left to what follows.
    The kernel is computed in float32 regardless of autocast.

    Args:
        shape: Sizes; `heads` has no effect, and `dropout` drops single outputs, as published.
        states: Even number of states N: N / 2 complex modes stand for as many conjugate pairs.
        init: Initialisation of A and B: `lin`, `inv` (equations 9 and 8) or `legs` (the spectrum of
            HiPPO-LegS).
        discretisation: `zoh` or `bilinear`.
        bidirectional: Whether a position also sees later ones.
        step_min: Smallest initial dt, in positions.
        step_max: Largest initial dt; dt is log-uniform between the two, but not below 1e-4, as
            published.
        step_transform: Map from the parameter to dt: `exp`, or `softplus` as in v4.
        copies: Number of different A and B; channel h has those of number h modulo `copies`. None
            gives each channel its own.

    Raises:
        ValueError: A value is out of range; the message names the option.
    """

    pad_invariant = True
    memory_growth = 1
    parameter_roles = {"step": "dt", "decay": "A", "frequency": "A", "b": "B", "c": "C"}

    def __init__(
        self,
        shape: AttentionShape,
        *,
        states: int = 64,
        init: Init = "lin",
        discretisation: Discretisation = "zoh",
        bidirectional: bool = True,
        step_min: float = 0.001,
        step_max: float = 0.1,
        step_transform: StepTransform = "softplus",
        copies: int | None = None,
    ) -> None:
        super().__init__()
        copies = shape.dim if copies is None else copies
        even(states=states)
        one_of(get_args(Init), init=init)
        one_of(get_args(Discretisation), discretisation=discretisation)
        one_of(get_args(StepTransform), step_transform=step_transform)
        above(0, step_min=step_min)
        rising(step_min=step_min, step_max=step_max)
        divisor(shape.dim, copies=copies)
        self.discretisation: Discretisation = discretisation
        self.step_transform = step_transform
        self.repeats = shape.dim // copies
        step = torch.empty(shape.dim).uniform_(math.log(step_min), math.log(step_max)).exp()
        step = step.clamp(min=MIN_STEP)
        self.step = nn.Parameter(step.log() if step_transform == "exp" else step.expm1().log())
        frequency, b = initial_modes(states, init)
        self.decay = nn.Parameter(torch.full((copies, states // 2), math.log(0.5)))
        self.frequency = nn.Parameter(frequency.repeat(copies, 1))
        self.b = nn.Parameter(torch.view_as_real(b).repeat(copies, 1, 1))
        directions = 2 if bidirectional else 1
        # Complex numbers of variance 1, half of it in each part; kept as pairs of reals, so that
        # optimisers, casts and counts treat them like any other parameters.
        self.c = nn.Parameter(torch.randn(directions, shape.dim, states // 2, 2) * 0.5**0.5)
        self.d = nn.Parameter(torch.randn(shape.dim))
        self.dropout = Dropout(shape.dropout)
        self.shared = SharedKernel()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Transform `x` `(B, L, H)`; `mask` `(B, L)` bool or None."""
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0.0)
        kernels = self.shared(self.kernels, x.shape[1])
        future = kernels[1, :, :-1] if len(kernels) > 1 else None
        y = convolve(x, kernels[0], future) + self.d * x
        dropped: Tensor = self.dropout(y.to(x.dtype))
        return dropped

    def kernels(self, length: int) -> Tensor:
        """Compute the kernels `(C, H, length)` of the past, from lag 0, and future, from lag 1."""
        log_a, b = self.discrete()
        return geometric_sums(2 * torch.view_as_complex(self.c) * b, log_a, length)

    def discrete(self) -> tuple[Tensor, Tensor]:
        """Return the discretised system: log Abar and Bbar, both complex `(H, n)`."""
        a = torch.complex(-self.decay.exp(), self.frequency).repeat(self.repeats, 1)
        b = torch.view_as_complex(self.b).repeat(self.repeats, 1)
        step = self.step.exp() if self.step_transform == "exp" else F.softplus(self.step)
        log_a, gain = discretise(a, step[:, None], self.discretisation)
        return log_a, gain * b

    def reference(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute `forward` without dropout as a recurrence, step by step."""
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0.0)
        log_a, b = self.discrete()
        c = 2 * torch.view_as_complex(self.c)
        inputs = b * x[..., None]  # (B, L, H, n)
        states = linear_recurrence_reference(log_a.exp(), inputs)
        y = (c[0] * states).sum(-1).real
        if len(c) > 1:
            later = linear_recurrence_reference(log_a.exp(), inputs, reverse=True)[:, 1:]
            seen = (c[1] * later).sum(-1).real
            y = y + F.pad(seen, (0, 0, 0, 1))
        return y + self.d * x


def initial_modes(states: int, init: Init) -> tuple[Tensor, Tensor]:
    """Return the initial imaginary parts of A and the initial complex B, each `(N / 2,)`.

    All real parts of A are -1/2. B is 1, except for `legs`, where its imaginary parts are clipped
    at 2.
    """
    n = torch.arange(states // 2)
    ones = torch.ones(states // 2)
    if init == "lin":
        return math.pi * n, torch.complex(ones, 0 * ones)
    if init == "inv":
        return states / math.pi * (states / (2 * n + 1) - 1), torch.complex(ones, 0 * ones)
    frequency, vectors = legs_spectrum(states)
    real = torch.get_default_dtype()
    b = vectors.conj().T @ [math.sqrt(2 * k + 1) for k in range(states)]
    parts = torch.tensor(b.real, dtype=real), torch.tensor(b.imag, dtype=real).clamp(-2, 2)
    return torch.tensor(frequency, dtype=real), torch.complex(*parts)
