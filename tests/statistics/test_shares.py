"""Shares and their intervals agree with closed forms and enumeration."""

import itertools
import math

import pytest

from sspo_cli.statistics import attainable, pass_at_k, wilson


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
