"""Shares, their intervals and their differences, against closed forms and enumeration."""

import itertools
import math
from random import Random

import numpy as np
import pytest

from sspo_cli.statistics import attainable, paired_bootstrap, paired_exact, pass_at_k, wilson


@pytest.mark.parametrize(("correct", "n"), [(0, 30), (4, 30), (15, 30), (30, 30), (700, 1319)])
def test_the_wilson_interval_is_the_closed_form(correct, n):
    z, share = 1.959963984540054, correct / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    assert wilson(correct, n) == pytest.approx((middle - half, middle + half), abs=1e-12)


def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_answer():
    for samples, k in itertools.product(range(1, 7), range(1, 7)):
        for correct in range(samples + 1):
            draws = list(itertools.combinations([True] * correct + [False] * (samples - correct), k))
            if k <= samples:
                assert pass_at_k(correct, samples, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_the_exact_paired_p_is_the_binomial_tail_of_the_discordant_pairs():
    a = [True] * 10 + [False] * 2 + [True] * 30 + [False] * 8
    b = [False] * 10 + [True] * 2 + [True] * 30 + [False] * 8
    tail = sum(math.comb(12, k) for k in range(3)) / 2**12
    assert paired_exact(a, b) == pytest.approx(2 * tail)
    assert paired_exact(b, a) == pytest.approx(2 * tail)
    assert paired_exact(a, a) == 1.0


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
    assert paired_bootstrap(a, a) == (0.0, 0.0, 0.0)


def test_the_bootstrap_interval_of_few_problems_is_that_of_all_resamples():
    b, a = [0.25, 1.0, 0.5, 0.25, 0.25, 0.75], [0.5, 0.75, 1.0, 0.75, 0.25, 0.5]
    means = np.sort(np.mean(list(itertools.product(np.subtract(a, b), repeat=6)), axis=1))
    low, high = (means[int(share * len(means))] for share in (0.025, 0.975))
    for share in (0.015, 0.035):  # far from a step, which a finite number of resamples might take
        assert (means[int(share * len(means))], means[int((1 - share) * len(means))]) == (low, high)
    assert paired_bootstrap(a, b) == pytest.approx((0.125, low, high))
    assert paired_bootstrap(b, a) == pytest.approx((-0.125, -high, -low))


def test_one_problem_says_nothing_about_others():
    assert paired_bootstrap([1.0], [0.0]) == (1.0, -1.0, 1.0)


@pytest.mark.parametrize(("n", "samples"), [(30, 1), (30, 4), (7, 1), (500, 1)])
def test_a_percentage_is_attainable_where_some_number_of_right_answers_rounds_to_it(n, samples):
    printed = {f"{100 * k / (n * samples):.1f}" for k in range(n * samples + 1)}
    for tenths in range(1001):
        percent = tenths / 10
        # A value halfway between two tenths may be printed as either.
        halfway = (2 * tenths - 1) * n * samples % 2000 == 0 or (2 * tenths + 1) * n * samples % 2000 == 0
        if not halfway:
            assert attainable(percent, n, samples) == (f"{percent:.1f}" in printed), percent


def test_the_paper_s_13_2_percent_of_30_problems_is_not_attainable():
    assert not attainable(13.2, 30)
    assert attainable(13.3, 30)
    assert attainable(13.2, 30, samples=32)
    assert attainable(13, 30, decimals=0)
