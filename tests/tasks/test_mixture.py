"""Mixtures draw without replacement within an epoch and by weight between tasks, and can be continued anywhere."""

from collections import Counter
from itertools import islice

import pytest

from sspo_cli.tasks.mixture import problem_stream

LETTERS, DIGITS = list("abcdefgh"), list("01234")


def draw(count: int, seed: int = 0, weights: tuple[float, float] = (3.0, 1.0), start: int = 0) -> list[str]:
    return list(islice(problem_stream([LETTERS, DIGITS], list(weights), seed), start, start + count))


def test_each_epoch_holds_every_problem_once_in_a_new_order():
    drawn = [item for item in draw(400) if item in LETTERS]
    epochs = [tuple(drawn[i : i + 8]) for i in range(0, len(drawn) - 7, 8)]
    assert len(epochs) > 20
    assert all(sorted(epoch) == LETTERS for epoch in epochs)
    assert len(set(epochs)) == len(epochs)


def test_tasks_are_mixed_by_weight():
    letters = sum(item in LETTERS for item in draw(4000))
    assert letters / 4000 == pytest.approx(0.75, abs=0.03)
    assert Counter(item in LETTERS for item in draw(4000, weights=(1.0, 9.0)))[True] < 500


def test_same_seed_same_stream_and_another_seed_another():
    assert draw(100) == draw(100)
    assert draw(100) != draw(100, seed=1)
    tasks = [[item in LETTERS for item in draw(100, seed=seed)] for seed in (0, 1)]
    assert tasks[0] != tasks[1]
    letters = [[item for item in draw(100, seed=seed) if item in LETTERS][:16] for seed in (0, 1)]
    assert letters[0] != letters[1]


@pytest.mark.parametrize("start", [1, 8, 57])
def test_going_on_from_a_draw_continues_the_stream(start):
    assert draw(50, start=start) == draw(50 + start)[start:]


def test_tasks_of_equal_size_are_not_shuffled_alike():
    first, second = list(range(50)), list(range(100, 150))
    drawn = list(islice(problem_stream([first, second], [1.0, 1.0], 0), 60))
    a, b = [x for x in drawn if x < 100], [x - 100 for x in drawn if x >= 100]
    common = min(len(a), len(b))
    assert a[:common] != b[:common]
