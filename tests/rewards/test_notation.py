"""Verdicts on answers that differ from the gold only in notation, and on answers that only seem to."""

import pytest

from sspo_cli.rewards import Verdict
from sspo_cli.rewards.notation import in_latex, with_both_signs
from sspo_cli.rewards.prose import measured
from sspo_cli.rewards.quick import prepared

RIGHT, WRONG = Verdict(True, "ok"), Verdict(False, "ok")


@pytest.mark.parametrize(
    ("written", "latex"),
    [
        ("2pi/3", r"2\pi /3"),
        ("70 sqrt(x+1)", r"70 \sqrt{x+1}"),
        ("sqrt(sqrt(2)+1)", r"\sqrt{\sqrt{2}+1}"),
        ("e^(-x/2) + 10^-3", "e^{-x/2} + 10^{-3}"),
        ("arctan(2)", r"\arctan(2)"),
        ("n choose 2", r"\binom{n}{2}"),
        ("52 (base 8)", "52_{8}"),
        ("1011 in base two", "1011_{2}"),
        ("12.5 percent", r"12.5\%"),
        ("⅜", r"\frac{3}{8}"),
        ("2½", r"2\frac{1}{2}"),
        ("x₁⩽３", r"x_1\le 3"),
        ("4\u200b2", "42"),
        ("the sine of pi", "the sine of pi"),
        ("sqrt(2", r"\sqrt(2"),
        ("2√3", r"2\sqrt{3}"),
        ("√(x+1)", r"\sqrt{x+1}"),
        ("90°", r"90^\circ"),
        (r"90\degree", r"90^\circ"),
        ("x²", "x^2"),
        ("x**2+2*x", "x^2+2*x"),
        ("- 5", "-5"),
        ("3 - 5", "3 - 5"),
        ("= 5", "5"),
        ("~60", "~60"),
        (r"\text{Evelyn}", r"\text{Evelyn}"),
        (r"2\mathrm{i}", "2 i"),
        (r"n \text{ is odd}", r"n \text{ is odd}"),
        (r"5\text{ or 6}", r"5\text{ or 6}"),
        (r"5 \text{ is wrong}", r"5 \text{ is wrong}"),
        (r"\sqrt{2} \approx 1.41", r"\sqrt{2}"),
        (r"x \approx 1.41", "1.41"),
        (r"f(2) \approx 1.41", "1.41"),
    ],
)
def test_one_notation(written, latex):
    assert in_latex(written) == latex


@pytest.mark.parametrize(
    ("answer", "value", "unit"),
    [
        (r"60~\text{mph}", "60", {"mi", "per", "h"}),
        (r"5\text{ cm}^2", "5", {"cm", "square"}),
        ("5 square centimetres", "5", {"cm", "square"}),
        (r"\frac{270}7\text{ degrees}", r"\frac{270}7", {"degree"}),
        ("90°", "90", {"degree"}),
        (r"x = 5 \mathrm{~cm}", "x = 5", {"cm"}),
        ("-$5.40", "-5.40", {"dollar"}),
        ("8:34 a.m.", "8:34", {"am"}),
        ("5km", "5", {"km"}),
        ("5m", "5m", set()),
        ("3 dx", "3 dx", set()),
        ("10^3", "10^3", set()),
        (r"n \text{ is odd}", r"n \text{ is odd}", set()),
        (r"5 \text{ is wrong}", r"5 \text{ is wrong}", set()),
    ],
)
def test_a_value_and_its_unit(answer, value, unit):
    assert measured(answer) == (value, unit)


@pytest.mark.parametrize(
    ("answer", "gold", "bare"),
    [
        ("60 m", "60", "60"),
        ("60 m/s^2", "60", "60"),
        (r"60\text{m}", r"60\pi", "60"),
        ("60 m", "60m", "60 m"),
        (r"2 \pmod{5}", "2", "2"),
        (r"2 \pmod{5}", r"2 \pmod{5}", r"2 \pmod{5}"),
    ],
)
def test_letters_are_units_where_the_gold_has_no_variables(answer, gold, bare):
    assert prepared(answer, gold)[0] == bare


def test_both_signs():
    assert with_both_signs(r"\frac{1\pm x}{2}") == r"\frac{1+ x}{2}, \frac{1- x}{2}"
    assert with_both_signs(r"\{1\pm\sqrt{5},-2\}") == r"1+\sqrt{5}, 1-\sqrt{5},-2"
    assert with_both_signs("3") == "3"


@pytest.mark.parametrize(
    ("prediction", "gold", "verdict"),
    [
        ("(-∞, 3)", r"(-\infty,3)", RIGHT),
        (r"\frac{1+\sqrt{5}}{2}, \frac{1-\sqrt{5}}{2}", r"\frac{1 \pm \sqrt{5}}{2}", RIGHT),
        (r"\frac{1+\sqrt{5}}{2}", r"\frac{1 \pm \sqrt{5}}{2}", WRONG),
        (r"-2, 1-\sqrt{5}, 1+\sqrt{5}", r"\{1\pm\sqrt{5},-2\}", RIGHT),
        # Letters in a gold answer are not units, and an unreadable text has no last number.
        ("3", "3t", WRONG),
        ("x^2", "x^2 t", WRONG),
        ("3", "2x^2 + 3y^2 = d", WRONG),
        ("2", r"2^{\aleph_0}", WRONG),
        ("1", r"\{ z \in \mathbb{C} \mid |z| \leq 1 \}", WRONG),
        (r"x^2+t", "u(t, x) = x^2 + t", RIGHT),
    ],
)
def test_verdicts(checker, prediction, gold, verdict):
    assert checker.check([(prediction, gold)]) == [verdict]
