"""Paired comparisons: whether two results on the same problems, or from the same seeds, differ by more than chance."""

import math
from collections.abc import Sequence
from statistics import stdev

import numpy as np
from scipy.stats import binom, binomtest, multinomial, permutation_test, ttest_1samp

RESAMPLES = 9_999
EQUAL = 1e-9  # a smaller standard deviation of differences is rounding


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Compute the two-sided p of McNemar's exact test that a and b, verdicts on the same problems, are equally good."""
    a_only = sum(x and not y for x, y in zip(a, b, strict=True))
    b_only = sum(y and not x for x, y in zip(a, b, strict=True))
    return float(binomtest(a_only, a_only + b_only).pvalue) if a_only + b_only else 1.0


def sign_flip(differences: Sequence[int]) -> float:
    """Compute the exact two-sided p of the paired differences' sum over all flips of their signs.

    `differences` are whole numbers (of solved answers), so that the distribution of the sum is a convolution of binomials,
    however many problems there are. For differences of -1, 0 and 1 it is McNemar's exact test.
    """
    sizes, counts = np.unique(np.abs([difference for difference in differences if difference]), return_counts=True)
    positive = np.ones(1)  # how likely each sum of the positive differences is
    for size, count in zip(sizes, counts, strict=True):
        of_this_size = np.zeros(size * count + 1)
        of_this_size[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
        positive = np.convolve(positive, of_this_size)
    sums = 2 * np.arange(len(positive)) - (len(positive) - 1)
    return min(1.0, float(positive[np.abs(sums) >= abs(sum(differences))].sum()))


def sign_flip_of_seeds(differences: Sequence[float]) -> float:
    """Compute the two-sided p of the mean of a few real differences, one a seed, over all flips of their signs."""
    test = permutation_test(
        (differences,), np.mean, permutation_type="samples", vectorized=True, rng=np.random.default_rng(0)
    )
    return float(test.pvalue)


def paired_t(differences: Sequence[float]) -> tuple[float, float, float]:
    """Compute the two-sided p of the paired t-test, and the mean difference's 95 % interval by Student's t.

    Equal differences, as round numbers of few problems may be, do not say how far apart others would be: all three are NaN.
    """
    if stdev(differences) <= EQUAL:
        return math.nan, math.nan, math.nan
    test = ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval()
    return float(test.pvalue), float(low), float(high)


def paired_bootstrap(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Compute the mean of a − b, shares solved of the same problems, with its 95 % percentile interval over resampled problems.

    Equal differences give every resample the same mean, and an interval of no width that would claim to be certain; it is
    exact then, see `of_equal_differences`.
    """
    differences = np.subtract(a, b, dtype=float)
    mean = float(differences.mean())
    if differ_alike(a, b):
        return mean, *of_equal_differences(mean, len(differences))
    # A resample is how often each distinct difference comes: few of them, however many problems.
    values, counts = np.unique(differences.round(12), return_counts=True)
    n = len(differences)
    resamples = multinomial.rvs(n, counts / n, size=RESAMPLES, random_state=np.random.default_rng(0))
    low, high = np.percentile(resamples @ values / n, [2.5, 97.5])
    return mean, float(low), float(high)


def differ_alike(a: Sequence[float], b: Sequence[float]) -> bool:
    """Report whether all differences a − b are equal."""
    return bool(np.ptp(np.subtract(a, b, dtype=float)) <= EQUAL)


def of_equal_differences(difference: float, n: int) -> tuple[float, float]:
    """Return the exact 95 % interval of the mean difference if all n problems have this one, of −1 to 1.

    Seen 0 times in n, the share of problems with another difference is at most u = 1 − 0.025^(1/n), Clopper and Pearson's
    limit. At worst all of these differ by −1, or by 1, so the mean is within d − u (d + 1) and d + u (1 − d). A single problem
    says nothing about others: u = 1.
    """
    most = 1 - 0.025 ** (1 / n) if n > 1 else 1.0
    return difference - most * (difference + 1), difference + most * (1 - difference)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number by Holm's step-down method, in the given order."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(value) for value in adjusted]
