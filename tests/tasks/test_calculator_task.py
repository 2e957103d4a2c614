"""Problems of the embedded multi-turn task are right, distinct and the same on every machine; its splits are disjoint."""

import hashlib
import re

import pytest

from sspo_cli.errors import UserError
from sspo_cli.tasks import calculator

TASKS = {"calculator": calculator.problems, "calculator-two": calculator.problems_of_two_calls}
SPLITS = ("train", "validation", "test")
# Hashes of all questions, answers and demonstrations. They change with the task, and so does every recorded run.
FINGERPRINTS = {"calculator": "f67d0085a042eaa1", "calculator-two": "13947b0c54782716"}


@pytest.fixture(scope="module")
def problems():
    return {(task, split): list(TASKS[task](None, split)) for task in TASKS for split in SPLITS}


@pytest.mark.parametrize("task", TASKS)
def test_splits_share_no_question(problems, task):
    questions = [{problem.question for problem in problems[task, split]} for split in SPLITS]
    assert [len(of_split) for of_split in questions] == [8192, 512, 512]
    assert len(set.union(*questions)) == 8192 + 512 + 512


def test_answers_are_right(problems):
    for split in SPLITS:
        for problem in problems["calculator", split]:
            assert re.fullmatch(r"\d\d\*\d\d[+-]\d{3}", problem.question)
            assert eval(problem.question) == int(problem.answer)
            assert len(problem.answer) == 4
        for problem in problems["calculator-two", split]:
            a, b, c = map(int, re.fullmatch(r"(\d\d)\*(\d\d)%\*(\d\d)", problem.question).groups())
            assert len(str(a * b)) == len(problem.answer) == 4
            assert a * b % 100 >= 10
            assert a * b % 100 * c == int(problem.answer)


@pytest.mark.parametrize(("task", "turns"), [("calculator", 3), ("calculator-two", 5)])
def test_three_tenths_of_the_demonstrations_use_the_calculator_and_the_others_guess_wrongly(problems, task, turns):
    worked = 0
    for problem in problems[task, "train"]:
        *calls, last = problem.episode
        proposal = re.fullmatch(r"<solution>(\d{4})</solution>", last)[1]
        assert problem.environment == "calculator"
        if calls:
            worked += 1
            assert len(problem.episode) == turns
            assert proposal == problem.answer
            for call, value in zip(calls[::2], calls[1::2], strict=True):
                assert eval(re.fullmatch(r"<execute>([\d*+-]+)</execute>", call)[1]) == int(value)
        else:
            assert proposal != problem.answer
    assert worked / 8192 == pytest.approx(0.3, abs=0.02)


def test_the_second_call_needs_the_first_ones_result(problems):
    for problem in problems["calculator-two", "train"]:
        if len(problem.episode) == 5:
            first, second = problem.episode[1], problem.episode[2]
            assert re.fullmatch(r"<execute>(\d\d)\*\d\d</execute>", second)[1] == first[-2:]


@pytest.mark.parametrize("task", TASKS)
def test_problems_are_the_same_everywhere(problems, task):
    text = "\n".join(f"{p.question} {p.answer} {p.episode}" for split in SPLITS for p in problems[task, split])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == FINGERPRINTS[task]


def test_unknown_split_and_needless_path_are_refused():
    with pytest.raises(UserError, match="calculator has no split dev; it has train, validation, test"):
        next(calculator.problems(None, "dev"))
    with pytest.raises(UserError, match="calculator-two is generated and does not read path=x"):
        next(calculator.problems_of_two_calls("x", "train"))
