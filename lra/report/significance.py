"""Test whether two accuracies differ significantly: the few tests that a report needs.

All tests are two-sided. They answer whether a difference is more than chance, not whether it is
large.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist, mean, stdev

# Two methods differ significantly if chance alone produces such a difference less often than this.
LEVEL = 0.05
# Student's t at 97.5 % by degrees of freedom: 0.975 quantiles from NIST/SEMATECH's handbook of
# statistical methods, 1.3.6.7.2.
_STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
NORMAL = NormalDist().inv_cdf(1 - LEVEL / 2)


def student(freedom: int) -> float:
    """Return how many standard errors a 95 % interval extends to either side.

    Args:
        freedom: Degrees of freedom, at least 1.
    """
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    # Abramowitz and Stegun, 26.7.5.
    z = NORMAL
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def all_equal(differences: Sequence[float]) -> bool:
    """Return whether differences are equal up to rounding, so that only their signs say something.

    Accuracies are multiples of one test example, so a few differences may be equal by chance, which
    says nothing about their spread.

    Args:
        differences: At least two.
    """
    return stdev(differences) <= 1e-9 * abs(mean(differences))


def paired_t(differences: Sequence[float]) -> float:
    """Return the probability of a mean difference this large if the true one is zero.

    This is Student's paired t test; the closed form of the distribution is from Abramowitz and
    Stegun, 26.7.3 and 26.7.4. If all differences are equal, it is the sign test.

    Args:
        differences: Differences between two methods with the same seed, at least two.
    """
    average, spread = mean(differences), stdev(differences)
    if all_equal(differences):
        return float(2.0 ** (1 - len(differences))) if average else 1.0
    freedom = len(differences) - 1
    angle = math.atan(abs(average) / spread * math.sqrt(len(differences) / freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    # Sum over cosines to the powers 0, 2, 4, ..., or 1, 3, 5, ... for odd degrees of freedom.
    first = freedom % 2
    term, total = cosine**first, 0.0
    for power in range(first, freedom - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    inside = sine * total if not first else 2 / math.pi * (angle + sine * total)
    return max(0.0, 1 - inside)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the probability of a split this uneven if both are equally often right alone.

    This is the exact form of McNemar's test, by the binomial distribution.

    Args:
        only_first: Number of examples that only the first method answers correctly.
        only_second: Number of examples that only the second method answers correctly.
    """
    discordant = only_first + only_second
    tail = sum(math.comb(discordant, k) for k in range(min(only_first, only_second) + 1))
    # In logarithms, since two to the power of thousands overflows a float.
    return min(1.0, math.exp(math.log(2 * tail) - discordant * math.log(2)))


def p_of_mean(average: float, error: float) -> float:
    """Return the probability of a mean this far from zero if the true one is zero.

    Args:
        average: Mean over many independent values.
        error: Its standard error.
    """
    if not error:
        return 0.0 if average else 1.0
    return math.erfc(abs(average) / error / math.sqrt(2))


def p_in_words(p: float) -> str:
    """Return a probability as text; one below the smallest numbers is not zero."""
    return f"p = {p:.2g}" if p else "p < 1e-300"


def wilson(correct: int, total: int) -> tuple[float, float]:
    """Return the `1 - LEVEL` interval of a share (Wilson, 1927), with ends between 0 and 1."""
    z = NORMAL
    share = correct / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    root = math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    half = z * root / (1 + z * z / total)
    # Exact at both ends, which rounding would miss.
    low = centre - half if correct else 0.0
    high = centre + half if correct < total else 1.0
    return low, high


def difference_interval(first: tuple[int, int], second: tuple[int, int]) -> tuple[float, float]:
    """Return the `1 - LEVEL` interval of the difference of two shares (Newcombe, 1998).

    Args:
        first: Number of correct answers and of all answers of one method.
        second: The same for the other method, whose share is subtracted.
    """
    (low1, high1), (low2, high2) = wilson(*first), wilson(*second)
    share1, share2 = first[0] / first[1], second[0] / second[1]
    difference = share1 - share2
    return (
        difference - math.hypot(share1 - low1, high2 - share2),
        difference + math.hypot(high1 - share1, share2 - low2),
    )
