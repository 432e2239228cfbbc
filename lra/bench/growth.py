"""Fit the power of N with which a quantity grows with the length, with its interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lra.report.significance import student


@dataclass(frozen=True)
class Growth:
    """The least-squares line through the logarithms of lengths and values.

    Args:
        exponent: The power of N.
        factor: The factor of the power.
        half_width: Half the width of the exponent's 95 % interval, by Student's t from the
            residuals; None with two lengths, which a line always fits exactly.
    """

    exponent: float
    factor: float
    half_width: float | None

    def __call__(self, length: float) -> float:
        """Return the fitted value at a length."""
        return self.factor * float(length**self.exponent)

    def __str__(self) -> str:
        """Return the exponent as tables show it, such as `1.87 ± 0.12`."""
        interval = "" if self.half_width is None else f" ± {self.half_width:.2f}"
        return f"{self.exponent:.2f}{interval}"


def growth(lengths: Sequence[int], values: Sequence[float]) -> Growth | None:
    """Return the power of N that fits values at lengths; None for fewer than two lengths.

    The interval shows how well one power fits all lengths. It is wide if the power itself grows
    with the length, as that of attention does beside the layers around it.

    Args:
        lengths: Distinct positive lengths, in tokens.
        values: Positive values, one per length.
    """
    if len(lengths) < 2:
        return None
    x, y = [math.log(n) for n in lengths], [math.log(value) for value in values]
    centre, middle = sum(x) / len(x), sum(y) / len(y)
    square = sum((a - centre) ** 2 for a in x)
    exponent = sum((a - centre) * (b - middle) for a, b in zip(x, y, strict=True)) / square
    start = middle - exponent * centre
    freedom = len(x) - 2
    if not freedom:
        return Growth(exponent, math.exp(start), None)
    left = sum((b - start - exponent * a) ** 2 for a, b in zip(x, y, strict=True))
    half = student(freedom) * math.sqrt(left / freedom / square)
    return Growth(exponent, math.exp(start), half)
