"""Paired comparisons of two results on the same problems or from the same seeds."""

import math
from collections.abc import Sequence
from statistics import stdev

import numpy as np
from scipy.stats import binom, binomtest, multinomial, permutation_test, ttest_1samp

RESAMPLES = 9_999
EQUAL = 1e-9  # differences whose spread is smaller are equal up to rounding errors


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Compute the two-sided p-value of McNemar's exact test for `a` and `b`, verdicts on the same problems."""
    a_only = sum(x and not y for x, y in zip(a, b, strict=True))
    b_only = sum(y and not x for x, y in zip(a, b, strict=True))
    return float(binomtest(a_only, a_only + b_only).pvalue) if a_only + b_only else 1.0


def sign_flip(differences: Sequence[int]) -> float:
    """Compute the exact two-sided p-value of the sum of paired differences over all flips of their signs.

    differences  per problem, the difference in the number of solved answers. As these are integers, the distribution of their
                 sum is a convolution of binomials, which is exact for any number of problems

    For differences of -1, 0 and 1 this is McNemar's exact test.
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

    All three numbers are NaN if all differences are equal, which can happen with few problems: their spread is then unknown.
    """
    if stdev(differences) <= EQUAL:
        return math.nan, math.nan, math.nan
    test = ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval()
    return float(test.pvalue), float(low), float(high)


def paired_bootstrap(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Compute the mean of a − b and its 95 % percentile interval over resampled problems.

    a, b  shares of solved answers for the same problems

    If all differences are equal, every resample has the same mean and the bootstrap interval has zero width. The interval
    is then the exact one of `of_equal_differences`.
    """
    differences = np.subtract(a, b, dtype=float)
    mean = float(differences.mean())
    if differ_alike(a, b):
        return mean, *of_equal_differences(mean, len(differences))
    # Draw the count of each distinct difference, because there are few distinct differences even among many problems.
    values, counts = np.unique(differences.round(12), return_counts=True)
    n = len(differences)
    resamples = multinomial.rvs(n, counts / n, size=RESAMPLES, random_state=np.random.default_rng(0))
    low, high = np.percentile(resamples @ values / n, [2.5, 97.5])
    return mean, float(low), float(high)


def differ_alike(a: Sequence[float], b: Sequence[float]) -> bool:
    """Report whether all differences a − b are equal."""
    return bool(np.ptp(np.subtract(a, b, dtype=float)) <= EQUAL)


def of_equal_differences(difference: float, n: int) -> tuple[float, float]:
    """Compute the exact 95 % interval of the mean difference if all n problems have this difference d, in [−1, 1].

    Since 0 of n problems have another difference, the share of such problems is at most u = 1 − 0.025^(1/n), the limit of
    Clopper and Pearson. At worst all of them differ by −1, or all by 1, so the mean is between d − u (d + 1) and
    d + u (1 − d). A single problem gives no information about others: u = 1.
    """
    most = 1 - 0.025 ** (1 / n) if n > 1 else 1.0
    return difference - most * (difference + 1), difference + most * (1 - difference)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple comparisons by Holm's step-down method, and return them in the given order."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(value) for value in adjusted]
