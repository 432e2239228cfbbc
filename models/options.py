"""Checks of the options of backends: one check and one wording for each kind of option.

Every function takes the options as keyword arguments and raises a `ValueError` that names the
option, its value and what would be right.
"""

import math
from collections.abc import Iterable

# The largest seed accepted here; torch's generators take larger ones too, but as negative numbers.
MAX_SEED = 2**63 - 1


def at_least(least: int, **options: int) -> None:
    """Reject numbers below `least`.

    Raises:
        ValueError: An option is below `least`.
    """
    for key, value in options.items():
        if value < least:
            raise ValueError(f"{key}={value}: must be at least {least}")


def one_of(choices: Iterable[str], **options: str) -> None:
    """Reject words that are not among `choices`.

    Raises:
        ValueError: An option is not among them.
    """
    known = tuple(choices)
    for key, value in options.items():
        if value not in known:
            raise ValueError(f"{key}={value}: must be one of {', '.join(known)}")


def even(**options: int) -> None:
    """Reject numbers that are odd or below 2.

    Raises:
        ValueError: An option is odd or below 2.
    """
    for key, value in options.items():
        if value < 2 or value % 2:
            raise ValueError(f"{key}={value}: must be even and at least 2")


def odd(**options: int) -> None:
    """Reject numbers that are even or below 1.

    Raises:
        ValueError: An option is even or below 1.
    """
    for key, value in options.items():
        if value < 1 or value % 2 == 0:
            raise ValueError(f"{key}={value}: must be odd and at least 1")


def above(bound: float, **options: float) -> None:
    """Reject numbers that are not above `bound`, or not finite.

    Raises:
        ValueError: An option is not above `bound`, or not finite.
    """
    for key, value in options.items():
        if not bound < value < math.inf:
            raise ValueError(f"{key}={value}: must be a finite number above {bound:g}")


def within(least: float, most: float, **options: float) -> None:
    """Reject numbers outside `[least, most]`.

    Raises:
        ValueError: An option is outside this range.
    """
    for key, value in options.items():
        if not least <= value <= most:
            raise ValueError(f"{key}={value}: must be from {least:g} to {most:g}")


def rising(**options: float) -> None:
    """Reject a number that is below the one named before it, or not finite.

    Raises:
        ValueError: An option is below the one before it, or not finite.
    """
    pairs = list(options.items())
    for (before, least), (key, value) in zip(pairs, pairs[1:], strict=False):
        if not least <= value < math.inf:
            raise ValueError(f"{key}={value}: must be a finite number, at least {before}={least}")


def divisor(of: int, **options: int) -> None:
    """Reject numbers that do not divide `of`.

    Raises:
        ValueError: An option does not divide `of`.
    """
    for key, value in options.items():
        if value < 1 or of % value:
            raise ValueError(f"{key}={value}: must divide {of}")


def check_seed(seed: int) -> None:
    """Reject a seed that is negative or above `MAX_SEED`.

    Raises:
        ValueError: The seed is negative or too large.
    """
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed={seed}: must be from 0 to {MAX_SEED}")
