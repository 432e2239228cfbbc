"""What state-space blocks have instead of an MLP: an activation and a gate on one residual path.

Axes: B batch, N length, D model width.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from models.sizes import MIXINGS


class GatedOutput(nn.Module):
    """Mix channels by a gated linear unit, with dropout after the activation and after the gate.

    With g = dropout(gelu(x)), the value before the last dropout is, for `glu`, a * sigmoid(b) with
    a, b = W g (S4; LRU and S5 write W as two matrices); for `half_glu1`, g * sigmoid(W g); for
    `half_glu2`, x * sigmoid(W g), both from S5.

    Args:
        dim: D.
        kind: One of the three above.
        gelu: The activation's approximation, as torch names it: `none` or `tanh`.
        dropout: Builds a dropout layer.
    """

    def __init__(self, dim: int, kind: str, gelu: str, dropout: Callable[[], nn.Module]) -> None:
        super().__init__()
        assert kind in MIXINGS[1:], kind
        self.kind = kind
        self.activation = nn.GELU(gelu)
        self.linear = nn.Linear(dim, 2 * dim if kind == "glu" else dim)
        self.inner_dropout, self.outer_dropout = dropout(), dropout()

    def forward(self, x: Tensor) -> Tensor:
        """Transform `x` `(B, N, D)`."""
        g = self.inner_dropout(self.activation(x))
        if self.kind == "glu":
            gated = F.glu(self.linear(g), -1)
        else:
            gated = (g if self.kind == "half_glu1" else x) * self.linear(g).sigmoid()
        dropped: Tensor = self.outer_dropout(gated)
        return dropped
