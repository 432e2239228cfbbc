"""The Linear Recurrent Unit (Orvieto et al. 2023, arXiv 2303.06349; code of minimal-LRU).

Axes: B batch, L length, H channels (the model width), N states, C directions.
"""

import math

import torch
from torch import Tensor, nn

from models.diagonal_system import Recurrence, diagonal_system
from models.heads import AttentionShape
from models.linear_recurrence import linear_recurrence, linear_recurrence_reference
from models.options import above, at_least, rising, within


class LRU(nn.Module):
    """Run a diagonal recurrence with complex states, stable by construction.

    lambda = exp(-exp(nu) + i exp(theta)), x[t] = lambda x[t-1] + exp(gamma) B u[t], y = Re(C x) +
    D u, without the factor 2 that conjugate pairs would have. If there are two directions, the
    second one has its own C and also sees the present. Masked positions enter as zeros. The layer
    runs in float32 regardless of autocast.

    Args:
        shape: Sizes; `heads` and `dropout` have no effect.
        states: Number of states N.
        r_min: Smallest initial modulus of lambda.
        r_max: Largest initial modulus; moduli are uniform in area on the ring between the two.
        max_phase: Initial phases are uniform in [0, max_phase], in radians.
        bidirectional: Whether a position also sees later ones, as in the paper for Pathfinder.
        as_released: Let padding through, as the released code does. In a bidirectional layer,
            masked input then always reaches the real positions before it; in a causal layer, it
            reaches real positions only if padding is not at the end.

    Raises:
        ValueError: A value is out of range; the message names the option.
    """

    memory_growth = 1
    parameter_roles = {"nu": "A", "theta": "A", "gamma": "A", "b": "B", "c": "C"}

    @property
    def pad_invariant(self) -> bool:
        """Whether the amount of padding changes nothing."""
        return not (self.as_released and len(self.c) > 1)

    def __init__(
        self,
        shape: AttentionShape,
        *,
        states: int = 128,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 6.28,
        bidirectional: bool = False,
        as_released: bool = False,
    ) -> None:
        super().__init__()
        at_least(1, states=states)
        above(0, max_phase=max_phase)
        within(0, 1, r_min=r_min, r_max=r_max)
        rising(r_min=r_min, r_max=r_max)
        self.as_released = as_released
        # The ends are left out, because their logarithms are infinite.
        area, turn = torch.empty(2, states).uniform_(1e-6, 1 - 1e-6).unbind(0)
        squared = (area * (r_max**2 - r_min**2) + r_min**2).clamp(1e-12, 1 - 1e-6)
        nu = torch.log(-0.5 * squared.log())
        self.nu, self.theta = nn.Parameter(nu), nn.Parameter(torch.log(max_phase * turn))
        # Half the logarithm of 1 - |lambda|^2, which gives states about the size of inputs.
        self.gamma = nn.Parameter(0.5 * torch.log(-torch.expm1(-2 * nu.exp())))
        directions = 2 if bidirectional else 1
        self.b = nn.Parameter(torch.randn(states, shape.dim, 2) / math.sqrt(2 * shape.dim))
        self.c = nn.Parameter(torch.randn(directions, shape.dim, states, 2) / math.sqrt(states))
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
        b = torch.view_as_complex(self.b) * self.gamma.exp()[:, None]
        c = torch.view_as_complex(self.c)
        return diagonal_system(x, self.factors(), b, c, recurrence) + self.d * x

    def factors(self) -> Tensor:
        """Return lambda, complex `(N,)`."""
        return torch.exp(torch.complex(-self.nu.exp(), self.theta.exp()))
