"""Paired tests, intervals and corrections agree with closed forms and enumeration."""

import itertools
import math
from random import Random

import numpy as np
import pytest
from scipy.stats import binomtest, permutation_test

from sspo_cli.statistics import holm, mcnemar, paired_bootstrap, sign_flip


def test_the_exact_paired_p_is_the_binomial_tail_of_the_discordant_pairs():
    a = [True] * 10 + [False] * 2 + [True] * 30 + [False] * 8
    b = [False] * 10 + [True] * 2 + [True] * 30 + [False] * 8
    tail = sum(math.comb(12, k) for k in range(3)) / 2**12
    assert mcnemar(a, b) == pytest.approx(2 * tail)
    assert mcnemar(b, a) == pytest.approx(2 * tail)
    assert mcnemar(a, a) == 1.0


def test_the_bootstrap_interval_is_that_of_the_paired_differences():
    draw = Random(0)
    b = [float(draw.random() < 0.4) for _ in range(800)]
    a = [float(draw.random() < 0.9) if solved else float(draw.random() < 0.15) for solved in b]
    difference, low, high = paired_bootstrap(a, b)
    deltas = [x - y for x, y in zip(a, b, strict=True)]
    mean = sum(deltas) / len(deltas)
    error = math.sqrt(sum((delta - mean) ** 2 for delta in deltas)) / len(deltas)
    assert difference == pytest.approx(mean)
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.1 * error)
    assert paired_bootstrap(a, b) == (difference, low, high)
    assert paired_bootstrap(b, a)[0] == -difference


@pytest.mark.parametrize(("difference", "n"), [(0.0, 30), (1.0, 30), (-1.0, 500), (0.25, 12)])
def test_equal_differences_have_the_exact_interval_of_those_not_seen(difference, n):
    a = [max(difference, 0.0)] * n
    b = [max(-difference, 0.0)] * n
    mean, low, high = paired_bootstrap(a, b)
    unseen = binomtest(0, n).proportion_ci(method="exact").high  # by Clopper and Pearson
    assert mean == difference
    assert low == pytest.approx((1 - unseen) * difference - unseen)
    assert high == pytest.approx((1 - unseen) * difference + unseen)
    assert high - low == pytest.approx(2 * unseen)


def test_the_bootstrap_interval_of_few_problems_is_that_of_all_resamples():
    b, a = [0.25, 1.0, 0.5, 0.25, 0.25, 0.75], [0.5, 0.75, 1.0, 0.75, 0.25, 0.5]
    means = np.sort(np.mean(list(itertools.product(np.subtract(a, b), repeat=6)), axis=1))
    low, high = (means[int(share * len(means))] for share in (0.025, 0.975))
    for share in (0.015, 0.035):  # no step is near, so that a finite number of resamples gives the same interval
        assert (means[int(share * len(means))], means[int((1 - share) * len(means))]) == (low, high)
    assert paired_bootstrap(a, b) == pytest.approx((0.125, low, high))
    assert paired_bootstrap(b, a) == pytest.approx((-0.125, -high, -low))


def test_one_problem_says_nothing_about_others():
    assert paired_bootstrap([1.0], [0.0]) == (1.0, -1.0, 1.0)


def test_holm_by_hand() -> None:
    # the sorted .01 .02 .03 .04 times 4, 3, 2, 1 give .04 .06 .06 .04, and the last rises to .06
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_sign_flip_p_is_that_of_all_flips() -> None:
    differences = [3, 0, -1, 2, 2, -1, 4]
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((1, -1), repeat=7)]
    assert sign_flip(differences) == pytest.approx(np.mean([s >= 9 for s in sums]))
    p = permutation_test(([3, -1, 2, 2, -1, 4],), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_flip(differences) == pytest.approx(p)
    assert sign_flip([1] * 9 + [-1] * 2 + [0] * 5) == pytest.approx(binomtest(9, 11).pvalue)  # McNemar's test
    assert sign_flip([0, 0]) == 1.0
    assert sign_flip([1] * 60) == pytest.approx(2 * 0.5**60)
