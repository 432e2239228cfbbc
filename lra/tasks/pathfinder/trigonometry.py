"""Compute sine, cosine and arc tangent correctly rounded: the same double on every machine.

The last bit of a library's sine depends on the library and on the processor, and a coordinate that
is rounded up turns that bit into a whole pixel. Here the functions are computed with 50 decimal
digits and rounded once. They are meant for building tables, not for calls in a loop.
"""

import math
from decimal import Decimal, localcontext
from functools import cache

DIGITS = 50


def _power_series(angle: Decimal, first: int) -> Decimal:
    """Sum the Taylor series of the sine (`first` = 1) or of the cosine (`first` = 0)."""
    term = angle if first else Decimal(1)
    total = Decimal(0)
    power = first
    while abs(term) > Decimal(10) ** -DIGITS:
        total += term
        term *= -angle * angle / ((power + 1) * (power + 2))
        power += 2
    return total


@cache
def sine(angle: float) -> float:
    """Return the double nearest to the sine of an angle in radians, |angle| below about 10."""
    with localcontext(prec=DIGITS + 10):
        return float(_power_series(Decimal(angle), 1))


@cache
def cosine(angle: float) -> float:
    """Return the double nearest to the cosine of an angle in radians, |angle| below about 10."""
    with localcontext(prec=DIGITS + 10):
        return float(_power_series(Decimal(angle), 0))


def direction(y: int, x: int) -> float:
    """Return the double nearest to the angle of the vector (y, x), in -pi..pi."""
    estimate = math.atan2(y, x)
    with localcontext(prec=DIGITS + 10):
        sin, cos = (_power_series(Decimal(estimate), first) for first in (1, 0))
        # The remainder is below 1e-15, where an angle and its tangent agree to 45 digits.
        return float(Decimal(estimate) + (y * cos - x * sin) / (x * cos + y * sin))
