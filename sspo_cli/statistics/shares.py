"""Shares of solved problems: how sure they are, and which of them can occur."""

import math
from fractions import Fraction

from scipy.stats import binomtest


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of the share `correct` / `n`."""
    interval = binomtest(correct, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def pass_at_k(correct: int, samples: int, k: int) -> float:
    """Estimate, without bias, the probability of solving a problem in k tries, of which `correct` of `samples` ≥ k solve it."""
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def attainable(percent: float, n: int, samples: int = 1, decimals: int = 1) -> bool:
    """Decide whether `samples` answers to each of `n` problems can give a percentage, as printed with `decimals`."""
    printed = Fraction(str(percent))
    answers = n * samples
    nearest = Fraction(100 * round(printed * answers / 100), answers)
    return abs(nearest - printed) <= Fraction(1, 2 * 10**decimals)
