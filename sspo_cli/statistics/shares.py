"""Shares of solved problems: confidence intervals, pass@k, and a check of printed percentages."""

import math
from fractions import Fraction

from scipy.stats import binomtest


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Compute Wilson's 95 % interval of the share `correct` / `n`."""
    interval = binomtest(correct, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def pass_at_k(correct: int, samples: int, k: int) -> float:
    """Return the unbiased estimate of the probability that at least one of k attempts solves a problem.

    correct  number of correct attempts
    samples  number of all attempts, at least k
    """
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def attainable(percent: float, n: int, samples: int = 1, decimals: int = 1) -> bool:
    """Report whether a printed percentage is possible if each of `n` problems has `samples` answers.

    percent  share of correct answers in %, rounded to `decimals` decimals
    """
    printed = Fraction(str(percent))
    answers = n * samples
    nearest = Fraction(100 * round(printed * answers / 100), answers)
    return abs(nearest - printed) <= Fraction(1, 2 * 10**decimals)
