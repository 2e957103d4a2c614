"""Shares of solved problems: their intervals, pass@k, and the percentages that are possible."""

import math
from fractions import Fraction

from scipy.stats import binomtest


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Compute Wilson's 95 % interval of the share `correct` / `n`."""
    interval = binomtest(correct, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def pass_at_k(correct: int, samples: int, k: int) -> float:
    """Estimate without bias the probability that one of k attempts solves a problem, given `correct` of `samples` ≥ k."""
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def attainable(percent: float, n: int, samples: int = 1, decimals: int = 1) -> bool:
    """Report whether `samples` answers to each of `n` problems can give a percentage printed with so many `decimals`."""
    printed = Fraction(str(percent))
    answers = n * samples
    nearest = Fraction(100 * round(printed * answers / 100), answers)
    return abs(nearest - printed) <= Fraction(1, 2 * 10**decimals)
