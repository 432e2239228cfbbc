"""How a quantity grows with the length: the power of N that fits it, with its interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lra.report.significance import student


@dataclass(frozen=True)
class Growth:
    """The line through logarithms of lengths and values, by least squares.

    Args:
        exponent: The power of N.
        factor: What the power is multiplied with.
        half_width: Half the width of the exponent's 95 % interval, by Student's t of what is left
            over; None with two lengths, through which a line always goes.
    """

    exponent: float
    factor: float
    half_width: float | None

    def __call__(self, length: float) -> float:
        """Return the fitted value at a length."""
        return self.factor * float(length**self.exponent)

    def __str__(self) -> str:
        """Say it as tables do, such as `1.87 ± 0.12`."""
        interval = "" if self.half_width is None else f" ± {self.half_width:.2f}"
        return f"{self.exponent:.2f}{interval}"


def growth(lengths: Sequence[int], values: Sequence[float]) -> Growth | None:
    """Return the power of N that fits values at lengths; None where there are fewer than two.

    The interval tells how well one power fits all lengths. It is wide where the power itself grows
    with the length, as that of attention does beside the layers around it.

    Args:
        lengths: In tokens, positive, each once.
        values: Of the same number, positive.
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
