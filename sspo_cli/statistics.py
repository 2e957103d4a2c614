"""How sure a number is, and whether two of them differ. Shares are in 0…1."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from scipy.stats import binomtest, multinomial

RESAMPLES = 9_999


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share."""
    interval = binomtest(correct, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def pass_at_k(correct: int, samples: int, k: int) -> float:
    """The unbiased estimate of solving a problem in k tries, where `correct` of `samples` ≥ k solve it."""
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def paired_exact(a: Sequence[bool], b: Sequence[bool]) -> float:
    """The two-sided p of McNemar's exact test that a and b, verdicts on the same problems, are equally good."""
    a_only = sum(x and not y for x, y in zip(a, b, strict=True))
    b_only = sum(y and not x for x, y in zip(a, b, strict=True))
    return float(binomtest(a_only, a_only + b_only).pvalue) if a_only + b_only else 1.0


def paired_bootstrap(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Mean of a − b, shares solved of the same problems, with its 95 % percentile interval over resampled problems.

    A single problem says nothing about others: its interval is everything, −1 to 1.
    """
    differences = np.subtract(a, b, dtype=float)
    mean = float(differences.mean())
    if len(differences) < 2:
        return mean, -1.0, 1.0
    # A resample is how often each distinct difference comes: few of them, however many problems.
    values, counts = np.unique(differences.round(12), return_counts=True)
    n = len(differences)
    resamples = multinomial.rvs(n, counts / n, size=RESAMPLES, random_state=np.random.default_rng(0))
    low, high = np.percentile(resamples @ values / n, [2.5, 97.5])
    return mean, float(low), float(high)


def attainable(percent: float, n: int, samples: int = 1, decimals: int = 1) -> bool:
    """Whether a percentage, as printed with `decimals`, can come from `samples` answers to each of `n` problems."""
    printed = Fraction(str(percent))
    answers = n * samples
    nearest = Fraction(100 * round(printed * answers / 100), answers)
    return abs(nearest - printed) <= Fraction(1, 2 * 10**decimals)
