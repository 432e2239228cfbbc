"""Mega's moving average in front of any attention (Ma et al. 2023, arXiv 2209.10655).

This is the control that Mega itself suggests: how much of its gain comes from the moving average,
and how much from the gated attention behind it?

Axes: B batch, L length, D model width.
"""

from collections.abc import Callable

from torch import Tensor, nn

from models.heads import AttentionShape, share
from models.moving_average import MovingAverage
from models.options import at_least


class EMA(nn.Module):
    """Apply an attention to a moving average of its input.

    Args:
        shape: Sizes; the inner attention is built for the same ones.
        inner: Builds the attention.
        states: Exponentials per channel and direction.
        truncation: Longest lag that is seen, plus one; None for all lags.
        bidirectional: Whether the average also includes later positions.

    Raises:
        ValueError: A value is out of range; the message names the option.
    """

    @property
    def pad_invariant(self) -> bool | None:
        """Whether the amount of padding changes nothing: as the inner attention declares."""
        return getattr(self.inner, "pad_invariant", None)

    @property
    def memory_growth(self) -> float | None:
        """The power of N with which memory grows: as the inner attention declares, if it does."""
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

    def share_with(self, first: nn.Module) -> None:
        """Let the inner attention share with that of the first layer."""
        assert isinstance(first, EMA)
        share(self.inner, first.inner)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Average `x` `(B, L, D)` and attend; `mask` `(B, L)` bool or None."""
        attended: Tensor = self.inner(self.average(x, mask).to(x.dtype), mask)
        return attended

    def reference(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute `forward` with the average as a recurrence and the attention's plain form."""
        inner = getattr(self.inner, "reference", self.inner)
        attended: Tensor = inner(self.average.reference(x, mask), mask)
        return attended
