"""Tests of the rules that check a proposal; answers that are only similar are rejected."""

import pytest

from sspo_cli.environments.checks import check_proposals
from sspo_cli.environments.denotations import joined, split
from sspo_cli.errors import UserError
from sspo_cli.rewards import AnswerChecker
from sspo_cli.types import Problem


def solved(checker: AnswerChecker, rule: str, solution: str, gold: str) -> bool:
    (verdict,) = check_proposals([(solution, Problem("1", "", gold, "test", check=rule))], checker)
    return verdict.equal


@pytest.mark.parametrize(
    ("solution", "gold", "expected"),
    [
        (" 15/2 ", r"\frac{15}{2}", True),
        ('"42"', "42", True),
        ("(4, 1)", "(4,1)", True),
        ("-1.0", "-1", True),
        ("11,880", r"11,\!880", True),
        ("The answer is 42", "42", True),
        ("41 or 42", "42", False),
        ("41\n42", "42", False),
        ("6*7", "42", False),
        ("", "42", False),
        # Answers as sympy prints them.
        ("2*pi", r"2\pi", True),
        ("3*sqrt(7)", r"3\sqrt{7}", True),
        ("(1 + sqrt(5))/2", r"\frac{1+\sqrt{5}}{2}", True),
        ("-3 + 2*I", "-3+2i", True),
        ("[1, 2]", "1,2", True),
        ("oo", r"\infty", True),
        ("(x - 1)**2", "(x-1)^2", True),
        ("2*pi", r"3\pi", False),
        ("-(3 + 2*I)", "-3+2i", False),
        ("2**-1*pi", r"\frac{\pi}{2}", True),
        ("(1 + sqrt(5))*2", r"1+2\sqrt{5}", False),
    ],
)
def test_mathematics(checker, solution, gold, expected):
    assert solved(checker, "math", solution, gold) is expected


@pytest.mark.parametrize(
    ("solution", "gold", "expected"),
    [
        ("2001", "2001", True),
        ("2001.0", "2001", True),
        ("1,200", "1200", True),
        ('"West Indies"', "West Indies", True),
        ("west indies.", "West Indies", True),
        ("Glenat", "Glénat", True),
        ("Niñas mal", "Niñas mal (telenovela)", True),
        ("1986–87", "1986-87", True),
        ("West Indies", "England", False),
        ("70", "070", True),
        ("3", "3 years", False),
        ("Pinehurst, USA", "Pinehurst, USA", True),
        ("Canada, Great Britain", "Great Britain|Canada", True),
        ("Great Britain|Canada", "Great Britain|Canada", True),
        ("['Great Britain', 'Canada']", "Great Britain|Canada", True),
        ("[('Canada',), ('Great Britain',)]", "Great Britain|Canada", True),
        ("Great Britain and Canada", "Great Britain|Canada", True),
        ("Great Britain\nCanada", "Great Britain|Canada", True),
        ("Great Britain, Canada, France", "Great Britain|Canada", False),
        ("Great Britain", "Great Britain|Canada", False),
        ("Canada, Canada", "Great Britain|Canada", False),
        ("2001, 2002, 2003", "2001", False),
        ("('West Indies', 41)", "West Indies", False),
        ("nan", "inf", False),
    ],
)
def test_denotations(checker, solution, gold, expected):
    assert solved(checker, "denotation", solution, gold) is expected


def test_values_with_bars_and_breaks_survive_as_one_gold():
    values = ["a|b", "c\\p", "d\ne", "f"]
    assert split(joined(values)) == values


@pytest.mark.parametrize(
    ("rule", "solution", "gold", "expected"),
    [
        ("within-5", "10", "10.0", True),
        ("within-5", "-103", "-108.0", True),
        ("within-5", "102", "-108.0", False),
        ("within-5", "5/8", "0.63", True),
        ("within-5", r"\frac{5}{8}", "0.63", True),
        ("within-5", "11", "10.0", False),
        ("within-5", "10 or 11", "10.0", False),
        ("within-5", "$1,050", "1050", True),
        ("within-5", "0", "0.0", True),
        ("within-5", "0.1", "0.0", False),
        ("within-5", "it is unknown", "10.0", False),
        ("within-5", "1,2", "12", False),
        ("theoremqa", "1.15", "1.12", True),
        ("theoremqa", "1.2", "1.12", False),
        ("theoremqa", "true", "True", True),
        ("theoremqa", "No", "True", False),
        ("theoremqa", "[0, 5]", "[0, 5]", True),
        ("theoremqa", "0, 5", "[0, 5]", True),
        ("theoremqa", "[0, 5, 1]", "[0, 5]", False),
        ("theoremqa", "4.63e8", "463000000.0", True),
        ("theoremqa", "(b)", "b", True),
        ("choice", "c", "c", True),
        ("choice", "C ) 18107", "c", True),
        ("choice", "(C)", "c", True),
        ("choice", "option C.", "c", True),
        ("choice", "The answer is C", "c", True),
        ("choice", "b or c", "c", False),
        ("choice", "correct", "c", False),
        ("choice", "", "c", False),
    ],
)
def test_rules_of_benchmarks(checker, rule, solution, gold, expected):
    assert solved(checker, rule, solution, gold) is expected


def test_an_unknown_rule_is_refused(checker):
    with pytest.raises(UserError, match="problem 1 has the unknown check maths; did you mean math"):
        solved(checker, "maths", "1", "1")
