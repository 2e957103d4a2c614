"""Tests of the verdicts that need no computer algebra."""

import pytest

from sspo_cli.rewards.quick import prepared, quick_verdict, respell
from sspo_cli.rewards.reading import extract_answer


@pytest.mark.parametrize(
    ("prediction", "gold", "equal"),
    [
        ("25", "025", True),
        ("1,234", "1234", True),
        (r"10,\!080", "10080", True),
        ("+7", "7", True),
        ("-7", "7", False),
        ("12,34", "1234", False),
        (r"11,\! 111", "11111", True),
        ("8", "9", False),
        ("=8", "9", False),
        ("x = 8", "9", False),
        ("x = 9", "9", True),
        ("same text", "same text", True),
        ("x" * 5000, "x", False),
        ("9" * 41, "9", None),
        (r"\frac{1}{2}", "0.5", True),
        (r"\frac{2}{4}", "0.5", True),
        (r"\frac{1}{2}", "1/3", False),
        ("0.5", r"\frac{1}{2}", True),
        ("-0.5", r"-\frac12", True),
        ("0.5", "-1/2", False),
        (r"\frac{12}{3}", "12/3", None),
        ("4", "1/0", None),
        ("7.0", "7", True),
        ("$1,234.50", "1234.5", True),
        ("1 000", "1000", True),
        ("1e5", "100000", True),
        ("−7", "-7", True),
        ("0.333", "0.3333", False),
        ("7.5", "7", False),
        ("- 7", "-7", True),
        ("–7", "-7", True),
        ("2 1/2", "2.5", True),
        (r"918\frac{1}{2}", "918.5", True),
        (r"0.1\overline{6}", "1/6", True),
        (r"0.\overline{3}", "0.3", False),
        (r"1.5 \times 10^{3}", "1500", True),
        ("1.5×10^3", "1500", True),
        ("1,5", "1.5", True),
        ("1,5", "1,5", True),
        ("1.5", "1,5", None),
        ("1,500", "1.5", False),
        ("1011_{2}", "1011_2", True),
        ("1011_3", "1011_2", False),
        ("3+5-2=6", "6", True),
        (r"x = \frac{3}{6} = 0.5", "1/2", True),
        ("3 m^2", "3", True),
        ("3 m/s", "3", True),
        ("3", "3t", None),
        ("3m", "3m + 1", None),
        (r"2 \pmod 5", "2", True),
        (r"17 \pmod 5", "2", False),
        (r"2 \pmod 7", r"2 \pmod 5", None),
        (".", ".5", None),
        ("The capital is Paris!", "capital is paris", True),
        ("Hello, world", "hello  world", True),
        ("The A", "a", None),
        ("p-q", "p q", None),
        ("f'", "f", None),
    ],
)
def test_quick_verdicts(prediction, gold, equal):
    assert quick_verdict(*prepared(prediction, gold)) is equal


@pytest.mark.parametrize(
    "prediction",
    [
        "3+5-2",
        "(3 + 5) - 2",
        "2*3",
        "2×3",
        "8−2",
        r"2 \times 3",
        r"2\cdot 3",
        "x=3+5-2",
        "12/2",
        r"\frac{12}{2}",
        r"\binom{4}{2}",
        r"\gcd(6, 12)",
        r"\max(5, 6)",
        r"\sum_{i=1}^{3} i",
        r"\lfloor 6.5 \rfloor",
        "3!",
        r"36^{1/2}",
        "6+0",
    ],
)
def test_the_question_again_is_no_answer(prediction):
    assert quick_verdict(*prepared(prediction, "6")) is False


@pytest.mark.parametrize(
    "prediction", [r"\frac{3}{4}-\frac{1}{4}", "0.25+0.25", "1 - 1/2", r"\sin 30^\circ", r"2^{-2}\cdot 2"]
)
@pytest.mark.parametrize("gold", [r"\frac{1}{2}", "1/2", "0.5"])
def test_nor_is_it_where_the_answer_is_a_fraction(prediction, gold):
    assert quick_verdict(*prepared(prediction, gold)) is False


@pytest.mark.parametrize(
    "prediction",
    [
        "5 = 6",
        "x = 5 = 6",
        "x = 5 or x = 6",
        r"5 \text{ or } 6",
        r"6 \text{ (or 5)}",
        r"5 \vee 6",
        "5 | 6",
        "1, 2, ..., 6",
        "5? No, 6",
        "> 6",
        r"\neq 6",
        r"\geq 6",
        r"6 \pm 1",
        "[5, 6]",
        r"\begin{pmatrix}5\\6\end{pmatrix}",
        "5 or **6**",
        "maybe 6",
        r"not \boxed{6}",
    ],
)
def test_several_numbers_or_none_of_them_are_no_answer(prediction):
    assert quick_verdict(*prepared(prediction, "6")) is False


@pytest.mark.parametrize(
    "listing", ["1/3 = 1/2", r"\frac13 = \frac12", r"\frac{1}{3} | \frac{1}{2}", r"\frac13 \lor \frac12"]
)
def test_neither_are_several_fractions(listing):
    assert quick_verdict(*prepared(listing, r"\frac{1}{2}")) is False


def test_alternatives_answer_only_what_has_several_answers():
    assert quick_verdict(r"x \text{ or } y", "y") is False
    assert quick_verdict(r"1 \text{ or } 2", "1,2") is None
    assert quick_verdict("x < 3", r"(-\infty, 3)") is None


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [
        ("2+x", "x+2"),
        ("-6", "x"),
        ("(-6)", "-6"),
        (r"\{6\}", "6"),
        ("110_{10}", "110"),
        (r"\sqrt{36}", "6"),
        ("10^3", "1000"),
    ],
)
def test_finished_answers_are_not_taken_for_the_question(prediction, gold):
    assert quick_verdict(*prepared(prediction, gold)) is None


@pytest.mark.parametrize(
    ("gold", "other"),
    [
        ("2", "2.0"),
        ("1,234", "1234.0"),
        ("0.5", r"\frac{1}{2}"),
        (r"-\frac{3}{4}", r"\frac{-3}{4}"),
        ("Yes", "The answer is Yes."),
        (r"\text{No solution}", "The answer is No solution."),
        ("ln", "The answer is $ln$."),
        ("5.4 cents", "The answer is $5.4 cents$."),
        (r"x^2 + 1", r"The answer is $x^2 + 1$."),
        ("(1, 2]", "The answer is $(1, 2]$."),
        ("B", "The answer is $B$."),
        ("A and B", "The answer is $A and B$."),
        ("$5 each", r"\boxed{$5 each}"),
        ("1e400", r"\boxed{1e400}"),
    ],
)
def test_another_spelling_of_a_gold_is_right(gold, other):
    assert respell(gold) == other
    answer = extract_answer(f"<answer>{other}</answer>", [gold])
    assert quick_verdict(*prepared(answer, gold)) is True
