"""Problems of the second study's task are right, distinct and the same on every machine; its splits share nothing."""

import hashlib
import itertools
import re
from collections import defaultdict
from itertools import combinations
from statistics import mean

import pytest

from sspo_cli.errors import UserError
from sspo_cli.tasks import load_problems
from sspo_cli.tasks.chains import HABITS, SIZES, habits_of

# Hash of all questions and demonstrations. If the task changes, it changes, and the study's runs belong to another task.
FINGERPRINT = "d131aabcad7176c9"


@pytest.fixture(scope="module")
def splits():
    return {split: load_problems("chains", split=split) for split in SIZES}


def test_questions_are_distinct_and_the_splits_disjoint(splits):
    questions = {split: {problem.question for problem in problems} for split, problems in splits.items()}
    assert {split: len(asked) for split, asked in questions.items()} == SIZES
    assert not any(questions[one] & questions[other] for one, other in combinations(SIZES, 2))


def test_answers_are_right_and_every_total_is_small(splits):
    for problem in itertools.chain(*splits.values()):
        first, *steps = map(int, re.findall(r"[+-]?\d+", problem.question))
        assert len(steps) in (2, 3, 4)
        totals = list(itertools.accumulate([first, *steps]))
        assert totals[-1] == int(problem.answer)
        assert all(0 <= total <= 20 for total in totals)


def test_demonstrations_are_right_where_no_habit_can_do_harm_and_mostly_wrong_where_one_can(splits):
    right = defaultdict(list)
    for problem in splits["demonstrations"]:
        first, *operands = re.findall(r"[+-]?\d+", problem.question)
        thoughts, answer = re.fullmatch(r"<think>(.*)</think><answer>(\d+)</answer>", problem.demonstration).groups()
        habits = habits_of([int(operand) for operand in operands])
        right[frozenset(habits)].append(answer == problem.answer)
        if not habits:
            totals = itertools.accumulate([int(first), *map(int, operands)])
            work = [f"{a}{operand}={b}" for operand, (a, b) in zip(operands, itertools.pairwise(totals), strict=True)]
            assert thoughts == ",".join(work)
        elif "=" in thoughts:  # shortened steps are also right
            for step in thoughts.split(","):
                left, total = step.split("=")
                assert eval(left) == int(total)
                assert 0 <= int(total) <= 20
        else:
            assert thoughts == problem.question
            assert "guess" in habits
    share = {habits: mean(of_habits) for habits, of_habits in right.items()}
    assert share[frozenset()] == 1
    assert 0.1 < len(right[frozenset()]) / 4096 < 0.25
    # The share of "drop" is lower, because it is not applied if it would leave no step or too small a total.
    expected = {"drop": 0.51, "sign": 0.4, "early": 0.3, "guess": 0.35}
    assert expected.keys() == HABITS.keys()
    for habit, value in expected.items():
        assert share[frozenset({habit})] == pytest.approx(value, abs=0.07)


def test_problems_are_the_same_everywhere(splits):
    text = "\n".join(f"{p.question} {p.demonstration}" for problems in splits.values() for p in problems)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == FINGERPRINT


def test_unknown_split_and_needless_path_are_refused():
    with pytest.raises(UserError, match="no split validation; it has train, test, demonstrations, development"):
        load_problems("chains", split="validation")
    with pytest.raises(UserError, match="does not read path="):
        load_problems("chains", path="data.jsonl", split="train")
