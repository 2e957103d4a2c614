"""Tests of the calculator environment: its episodes, their records, and continuing from a record."""

import random
from dataclasses import asdict
from itertools import islice

import pytest

from sspo_cli.environments.calculator import CalculatorEnvironment, calculate
from sspo_cli.environments.episode import EpisodeLimits
from sspo_cli.errors import UserError
from sspo_cli.rewards import AnswerChecker
from sspo_cli.tasks import calculator
from sspo_cli.types import Problem, Turn

PROBLEM = Problem("1", "47*86-129", "3913", "calculator", environment="calculator")


@pytest.fixture
def environment():
    with AnswerChecker(workers=1) as checker:
        yield CalculatorEnvironment(checker)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("47*86-129", 3913),
        (" (1+2)*-3 ", -9),
        ("--4", 4),
        ("10**2", None),
        ("1/2", None),
        ("1.5+1", None),
        ("07*3", None),
        ("True+1", None),
        ("__import__('os')", None),
        ("a", None),
        ("'1'", None),
        ("1,2", None),
        ("", None),
        ("1+\x001", None),
        ("(" * 40, None),
        ("1" + "+1" * 40, None),
        ("999999*999999", 999998000001),
        ("9999999*9999999", None),
        ("1000000000001", None),
        ("9" * 64, None),
        ("1_000", 1000),
    ],
)
def test_expressions(expression, value):
    assert calculate(expression) == value


def test_agrees_with_python_on_random_expressions():
    draw = random.Random(0)
    for _ in range(200):
        numbers = [str(draw.randint(0, 999)) for _ in range(4)]
        text = "".join(a + draw.choice("+-*") for a in numbers[:3]) + f"({numbers[3]}-5)"
        assert calculate(text) == eval(text)


def test_an_episode(environment):
    episode = environment.open(PROBLEM, 0)
    assert environment.step([(episode, "<execute>47*86-129</execute>")]) == ["3913"]
    assert environment.step([(episode, "hm")]) == ["error"]
    assert environment.step([(episode, "<solution>3913</solution>")]) == [None]
    outcome = episode.outcome
    assert (outcome.solved, outcome.proposals, outcome.turns, outcome.calls, outcome.ended) == (True, 1, 3, 1, "solved")
    assert (episode.reward.answer, episode.reward.format, episode.reward.extracted) == (1.0, 2 / 3, "3913")


@pytest.mark.parametrize(
    ("turns", "ended", "answer", "form"),
    [
        (["<solution>1</solution>"], "proposals", 0.0, 1.0),
        (["<execute>1</execute>"] * 4, "turns", 0.0, 0.0),
        (["<execute>1</execute>"] * 2, "tokens", 0.0, 0.0),
        (["<execute>1</execute>.", "<solution>3913</solution>"], "solved", 1.0, 0.5),
        # An observation is not a proposal, even if it is the right value.
        (["<execute>3913</execute>", "<solution>1</solution>"], "proposals", 0.0, 1.0),
    ],
)
def test_how_an_episode_ends_and_what_it_earns(environment, turns, ended, answer, form):
    episode = environment.open(PROBLEM, 0)
    for turn in turns:
        assert not episode.over
        environment.step([(episode, turn)])
    assert episode.over is (ended != "tokens")
    assert episode.outcome.ended == ended
    assert (episode.reward.answer, episode.reward.format) == (answer, form)


def test_many_episodes_step_together(environment):
    problems = list(islice(calculator.problems(None, "validation"), 20))
    episodes = [environment.open(problem, n) for n, problem in enumerate(problems)]
    answers = environment.step([(e, f"<execute>{e.problem.question}</execute>") for e in episodes])
    assert answers == [problem.answer for problem in problems]
    moves = [
        (e, f"<solution>{answer if n % 2 else 1}</solution>")
        for n, (e, answer) in enumerate(zip(episodes, answers, strict=True))
    ]
    assert environment.step(moves) == [None] * 20
    assert [episode.solved for episode in episodes] == [n % 2 == 1 for n in range(20)]


def test_an_episode_continues_from_its_record(environment):
    whole = environment.open(PROBLEM, 0)
    moves = ["<execute>47*86</execute>", "what", "<solution>3913</solution>"]
    for done, move in enumerate(moves):
        continued = environment.open(PROBLEM, 0, [Turn(**asdict(turn)) for turn in whole.turns[:done]])
        assert environment.step([(continued, move)]) == environment.step([(whole, move)])
        assert continued.turns == whole.turns
    assert continued.outcome == whole.outcome


def test_a_record_that_the_limits_do_not_allow_is_refused(environment):
    episode = environment.open(PROBLEM, 0)
    for _ in range(4):
        environment.step([(episode, "<execute>1</execute>")])
    shorter = CalculatorEnvironment(AnswerChecker(workers=1), EpisodeLimits(turns=3, proposals=1))
    with pytest.raises(UserError, match=r"has 4 turns and 0 proposals, more than episode\.turns=3"):
        shorter.open(PROBLEM, 0, episode.turns)
