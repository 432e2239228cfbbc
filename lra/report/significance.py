"""Whether two accuracies can be told from each other: the few tests that a report needs.

All are two-sided. They answer whether a difference is more than chance, not whether it is large.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist, mean, stdev

# What is rarer than this by chance alone tells two methods from each other.
LEVEL = 0.05
# Student's t at 97.5 % by degrees of freedom, the last for any more: 0.975 quantiles as in
# NIST/SEMATECH's handbook of statistical methods, 1.3.6.7.2.
_STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
NORMAL = 1.960


def student(freedom: int) -> float:
    """Return by how many standard errors a 95 % interval reaches to either side.

    Args:
        freedom: Degrees of freedom, at least 1.
    """
    return _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else NORMAL


def paired_t(differences: Sequence[float]) -> float:
    """Return the probability of a mean difference as large as this one, were there none.

    Student's test for pairs; its distribution in closed form from Abramowitz and Stegun, 26.7.3 and
    26.7.4.

    Args:
        differences: Of two methods with the same seed, at least two.
    """
    average, spread = mean(differences), stdev(differences)
    if not spread:
        return 0.0 if average else 1.0
    freedom = len(differences) - 1
    angle = math.atan(abs(average) / spread * math.sqrt(len(differences) / freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    # Of cosines to the power of 0, 2, 4 ..., or of 1, 3, 5 ... where the freedom is odd.
    first = freedom % 2
    term, total = cosine**first, 0.0
    for power in range(first, freedom - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    inside = sine * total if not first else 2 / math.pi * (angle + sine * total)
    return max(0.0, 1 - inside)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the probability of a split as uneven as this one, were both as often right alone.

    McNemar's test in its exact form, by the binomial distribution.

    Args:
        only_first: Examples that the first method alone has right.
        only_second: Examples that the second alone has right.
    """
    discordant = only_first + only_second
    tail = sum(math.comb(discordant, k) for k in range(min(only_first, only_second) + 1))
    # By logarithms: two to the power of thousands is no float.
    return min(1.0, math.exp(math.log(2 * tail) - discordant * math.log(2)))


def wilson(correct: int, total: int) -> tuple[float, float]:
    """Return the interval of a share at `1 - LEVEL` (Wilson, 1927), both between 0 and 1."""
    z = NormalDist().inv_cdf(1 - LEVEL / 2)
    share = correct / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    root = math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    half = z * root / (1 + z * z / total)
    # At both ends exactly, which rounding would miss.
    low = centre - half if correct else 0.0
    high = centre + half if correct < total else 1.0
    return low, high


def difference_interval(first: tuple[int, int], second: tuple[int, int]) -> tuple[float, float]:
    """Return the interval of the difference of two shares at `1 - LEVEL` (Newcombe, 1998).

    Args:
        first: Right answers and answers of one method.
        second: The same of the other; its share is subtracted.
    """
    (low1, high1), (low2, high2) = wilson(*first), wilson(*second)
    share1, share2 = first[0] / first[1], second[0] / second[1]
    difference = share1 - share2
    return (
        difference - math.hypot(share1 - low1, high2 - share2),
        difference + math.hypot(high1 - share1, share2 - low2),
    )
