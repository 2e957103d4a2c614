"""Held-out problems occur nowhere in training and are the same in every run."""

import pytest

from sspo_cli.errors import UserError
from sspo_cli.tasks import load_problems
from sspo_cli.tasks.validation import hold_out, shares, without
from sspo_cli.types import Problem


def problems(task: str, *questions: str) -> list[Problem]:
    return [Problem(f"train-{number}", question, "1", task) for number, question in enumerate(questions)]


def test_nothing_held_out_is_asked_in_training_and_nothing_else_is_lost():
    train = load_problems("arithmetic", split="train", limit=500)
    (left,), held_out = hold_out([train], [1.0], 64)
    assert len({problem.question for problem in held_out}) == 64
    assert {problem.question for problem in held_out} | {problem.question for problem in left} == {
        problem.question for problem in train
    }
    assert len(left) == 500 - 64
    assert left == [problem for problem in train if problem in left]  # the order is kept
    places = sorted(train.index(problem) for problem in train if problem not in left)
    assert places[-1] > 400  # drawn from the whole task, not cut off its beginning


def test_it_is_the_same_problems_each_time_and_none_where_none_are_asked_for():
    train = load_problems("arithmetic", split="train", limit=100)
    assert hold_out([train], [1.0], 8) == hold_out([train], [1.0], 8)
    assert hold_out([train], [1.0], 0) == ([train], [])


def test_a_question_that_stands_elsewhere_too_goes_from_there_as_well():
    one = problems("gsm8k", "a b", "c", "a  b", "d")
    two = problems("deepmath", "e", "a\nb", "f", "c", "d")
    for count in range(1, 4):
        left, held_out = hold_out([one, two], [1.0, 1.0], count)
        asked = {" ".join(problem.question.split()) for problem in held_out}
        assert len(asked) == len({problem.id for problem in held_out}) == count
        for rest in left:
            assert rest
            assert not asked & {" ".join(problem.question.split()) for problem in rest}
    assert [problem.question for problem in without(two, one[:1])] == ["e", "f", "c", "d"]


def test_ids_of_two_tasks_of_one_name_are_made_distinct():
    one, two = problems("file", "a", "b", "c"), problems("file", "d", "e", "f")  # both have the ids train-0 to train-2
    _, held_out = hold_out([one, two], [1.0, 1.0], 4)
    assert len({problem.id for problem in held_out}) == 4


def test_each_task_gives_by_its_weight():
    assert shares([1.0, 1.0], 256) == [128, 128]
    assert shares([3.0, 1.0], 10) == [8, 2]  # from 7.5 and 2.5; of equal remainders the first is rounded up
    assert shares([1.0, 1.0, 1.0], 8) == [3, 3, 2]
    assert shares([0.7, 0.2, 0.1], 9) == [6, 2, 1]
    one, two = problems("gsm8k", *map(str, range(40))), problems("dapo", *map(str, range(40, 80)))
    _, held_out = hold_out([one, two], [3.0, 1.0], 20)
    assert [problem.task for problem in held_out] == ["gsm8k"] * 15 + ["dapo"] * 5


@pytest.mark.parametrize(
    ("count", "said"),
    [(3, "hold out 3 problems of task gsm8k, which has 3 different problems"), (9, "hold out 9 problems")],
)
def test_a_task_with_too_few_is_reported(count, said):
    with pytest.raises(UserError, match=said):
        hold_out([problems("gsm8k", "a", "b", "a", "c")], [1.0], count)


def test_a_task_that_has_only_what_another_one_holds_out_is_reported():
    big, small = problems("gsm8k", *"abcdefgh"), problems("file", *"abcdefgh")
    with pytest.raises(UserError, match="holds out every question of task file"):
        hold_out([big, small[:1]], [1.0, 1e-9], 7)
