"""Paired comparisons of two results on the same problems or with the same seeds."""

import math
from collections.abc import Sequence
from statistics import stdev

import numpy as np
from scipy.stats import binom, binomtest, multinomial, permutation_test, ttest_1samp

RESAMPLES = 9_999
EQUAL = 1e-9  # differences that vary by at most this value are equal up to rounding errors


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Compute the two-sided p-value of McNemar's exact test.

    a, b  for each problem, True if the answer of the first (a) or second (b) result is correct
    """
    a_only = sum(x and not y for x, y in zip(a, b, strict=True))
    b_only = sum(y and not x for x, y in zip(a, b, strict=True))
    return float(binomtest(a_only, a_only + b_only).pvalue) if a_only + b_only else 1.0


def sign_flip(differences: Sequence[int]) -> float:
    """Compute the exact two-sided p-value of the sum of paired differences over all flips of their signs.

    differences  for each problem, the difference in the number of correct answers

    Because the differences are integers, the distribution of their sum is a convolution of binomial distributions, which is
    computed exactly for any number of problems. If all differences are -1, 0 or 1, this is McNemar's exact test.
    """
    sizes, counts = np.unique(np.abs([difference for difference in differences if difference]), return_counts=True)
    positive = np.ones(1)  # the distribution of the sum of the positive differences
    for size, count in zip(sizes, counts, strict=True):
        of_this_size = np.zeros(size * count + 1)
        of_this_size[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
        positive = np.convolve(positive, of_this_size)
    sums = 2 * np.arange(len(positive)) - (len(positive) - 1)
    return min(1.0, float(positive[np.abs(sums) >= abs(sum(differences))].sum()))


def sign_flip_of_seeds(differences: Sequence[float]) -> float:
    """Compute the exact two-sided p-value of the mean of a few differences, one per seed, over all flips of their signs."""
    test = permutation_test(
        (differences,), np.mean, permutation_type="samples", vectorized=True, rng=np.random.default_rng(0)
    )
    return float(test.pvalue)


def paired_t(differences: Sequence[float]) -> tuple[float, float, float]:
    """Compute the two-sided p-value of the paired t-test, and the 95 % interval of the mean difference by Student's t.

    If all differences are equal, which can happen with few problems, their variance is unknown and all three numbers are NaN.
    """
    if stdev(differences) <= EQUAL:
        return math.nan, math.nan, math.nan
    test = ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval()
    return float(test.pvalue), float(low), float(high)


def paired_bootstrap(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Compute the mean of a − b and its 95 % percentile interval over resampled problems.

    a, b  shares of solved answers for the same problems

    If all differences are equal, all resamples have the same mean and a bootstrap interval would have zero width. In this case,
    the interval is the exact interval of `of_equal_differences`.
    """
    differences = np.subtract(a, b, dtype=float)
    mean = float(differences.mean())
    if differences_are_equal(a, b):
        return mean, *of_equal_differences(mean, len(differences))
    # Draw the counts of distinct differences, because even many problems have few distinct differences.
    values, counts = np.unique(differences.round(12), return_counts=True)
    n = len(differences)
    resamples = multinomial.rvs(n, counts / n, size=RESAMPLES, random_state=np.random.default_rng(0))
    low, high = np.percentile(resamples @ values / n, [2.5, 97.5])
    return mean, float(low), float(high)


def differences_are_equal(a: Sequence[float], b: Sequence[float]) -> bool:
    """Report whether all differences a − b are equal."""
    return bool(np.ptp(np.subtract(a, b, dtype=float)) <= EQUAL)


def of_equal_differences(difference: float, n: int) -> tuple[float, float]:
    """Compute the exact 95 % interval of the mean difference if all `n` problems have the same `difference` d in [−1, 1].

    0 of n problems have a difference other than d. Therefore, the share of problems with such a difference is at most
    u = 1 − 0.025^(1/n), the Clopper-Pearson limit. In the worst case, all of these differences are −1, or all are 1. The mean is
    therefore between d − u (d + 1) and d + u (1 − d). A single problem is no evidence about other problems, so u = 1 for n = 1.
    """
    most = 1 - 0.025 ** (1 / n) if n > 1 else 1.0
    return difference - most * (difference + 1), difference + most * (1 - difference)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for multiple comparisons by Holm's step-down method, in the order of `p_values`."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(value) for value in adjusted]
