"""Mega's moving average in front of any attention (Ma et al. 2023, arXiv 2209.10655).

The control that Mega itself suggests: how much of its gain is the moving average, and how much
the gated attention behind it?

Axes: B batch, L length, D model width.
"""

from collections.abc import Callable

from torch import Tensor, nn

from models.heads import AttentionShape
from models.moving_average import MovingAverage
from models.options import at_least


class EMA(nn.Module):
    """Give an attention a moving average of its input.

    Args:
        shape: Sizes; the attention inside is built for the same.
        inner: Builds the attention.
        states: Exponentials a channel and direction.
        truncation: Longest lag that is seen, plus one; None sees all.
        bidirectional: Whether the average reaches forward too.

    Raises:
        ValueError: A value is out of range; the message names the option.
    """

    @property
    def pad_invariant(self) -> bool | None:
        """Whether the amount of padding changes nothing, which the attention inside decides."""
        return getattr(self.inner, "pad_invariant", None)

    @property
    def memory_growth(self) -> float | None:
        """The power of N that memory grows with: that of the attention inside, if it says so."""
        return getattr(self.inner, "memory_growth", None)

    def __init__(
        self,
        shape: AttentionShape,
        *,
        inner: Callable[[AttentionShape], nn.Module],
        states: int = 16,
        truncation: int | None = None,
        bidirectional: bool = True,
    ) -> None:
        super().__init__()
        at_least(1, states=states)
        if truncation is not None:
            at_least(1, truncation=truncation)
        self.average = MovingAverage(
            shape.dim, states=states, truncation=truncation, bidirectional=bidirectional
        )
        self.inner = inner(shape)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Average `x` `(B, L, D)` and attend; `mask` `(B, L)` bool or None."""
        attended: Tensor = self.inner(self.average(x, mask).to(x.dtype), mask)
        return attended

    def reference(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute `forward` with the average as a recurrence, the attention by its plain form."""
        inner = getattr(self.inner, "reference", self.inner)
        attended: Tensor = inner(self.average.reference(x, mask), mask)
        return attended
