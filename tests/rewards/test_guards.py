"""Verdicts on whole completions that earn the reward, and on others that only seem to earn it."""

import pytest

from sspo_cli.rewards import grade

RIGHT = [
    # In a box, in a sentence, or bare.
    (r"\boxed{x+1}", "x+1"),
    (r"The answer is $\boxed{x+1}$.", "x+1"),
    ("So the answer is $x+1$.", "x+1"),
    ("1+x", "x+1"),
    # Words that are also in the gold.
    ("June 20", "June 20"),
    (r"\text{June 20}", "June 20"),
    ("The Eiffel Tower.", "Eiffel tower"),
    # Inequalities and alternatives, if the gold is one.
    (r"3 \le x", r"x \geq 3"),
    ("x < 3", r"(-\infty, 3)"),
    ("x = 1 or x = 2", "x = 2 or x = 1"),
    (r"1 \le x \le 2", "[1,2]"),
    # Lists and both signs.
    (r"-2, 2", r"\pm 2"),
    (r"\pm 2", "2, -2"),
    (r"\pm 2", r"\pm 2"),
    (r"1 \pm \sqrt{x}", r"1 + \sqrt{x}, 1 - \sqrt{x}"),
    (r"\{2, 1\}", r"\{1, 2\}"),
    # Signs of fractions and of repeating decimals, exact decimals, bases.
    (r"-\frac{1}{2}", "-1/2"),
    (r"-0.\overline{3}", "-1/3"),
    ("-1 1/2", "-1.5"),
    (r"1.5 \times 10^{-2}", "0.015"),
    ("0.5", r"\frac{1}{2}"),
    ("1011_{2}", "1011_2"),
    # Units and moduli, if the gold has no such letter.
    ("60 m", "60"),
    (r"5\text{ cm}^2", "5"),
    (r"2 \pmod{5}", "2"),
    # A rounded value next to the exact one.
    (r"\sqrt{2} \approx 1.41", r"\sqrt{2}"),
    (r"x \approx 1.41", "1.41"),
]

WRONG = [
    # Denied or unfinished.
    (r"not \boxed{x+1}", "x+1"),
    (r"It is never $\boxed{x+1}$", "x+1"),
    (r"\boxed{x+1} is wrong", "x+1"),
    (r"\boxed{x+1", "x+1"),
    (r"not \boxed{\frac{a}{b}}", r"\frac{a}{b}"),
    (r"either \boxed{x+1}", "x+1"),
    ("not $x+1$", "x+1"),
    ("$x+1$ is wrong", "x+1"),
    # Doubted, bounded or scaled.
    ("maybe $x+1$", "x+1"),
    ("at least $x+1$", "x+1"),
    ("twice $x+1$", "x+1"),
    ("$x+1$ or so", "x+1"),
    ("42 thousand", "42"),
    ("half of 42", "42"),
    # Several answers, although the gold is one.
    ("$x+1$ or $x+2$", "x+1"),
    ("$x+1$ and $x+2$", "x+1"),
    (r"\boxed{x+1} \boxed{x+2}", "x+1"),
    (r"\boxed{x+1} and \boxed{x+2}", "x+2"),
    ("x+2, x+1", "x+1"),
    ("41 = 42", "42"),
    ("1, x = 42", "42"),
    ("x = 41, x = 42", "42"),
    (r"x+1 \lor x+2", "x+1"),
    # One answer, although the gold has several.
    ("2", r"\pm 2"),
    (r"1 + \sqrt{x}", r"1 \pm \sqrt{x}"),
    ("1", r"\{1, 2\}"),
    # The question repeated, or a number that is part of another.
    ("40 + 2", "42"),
    (r"\binom{42}{1}", "42"),
    ("x_{42}", "42"),
    ("2^{42}", "42"),
    ("xy - 1", "1"),
    ("42!", "42"),
    # Another value.
    (r"\frac{1}{2}", "-1/2"),
    (r"-0.\overline{3}", "1/3"),
    ("1 1/2", "-1.5"),
    (r"1.5 \times 10^{2}", "0.015"),
    ("0.333", r"\frac{1}{3}"),
    ("1011_2", "1011_3"),
    ("1,5", "15"),
    ("12,34", "1234"),
    ("5,0", "5"),
    ("-x-1", "x+1"),
    (r"3 \geq x", r"x \geq 3"),
    ("(1,2)", "[1,2]"),
    # Words.
    ("20", "June 20"),
    ("June 21", "June 20"),
    ("The A", "a"),
    ("p-q", "pq"),
    # Letters are not units if the gold has them.
    ("3", "3t"),
    ("60 m", "60mn"),
    (r"2 \pmod{7}", r"2 \pmod{5}"),
    (r"x \approx 1.46", "1.4"),
]


def verdict(checker, answer, gold):
    (reward,) = grade([f"<think>Let me see.</think><answer>{answer}</answer>"], [gold], checker)
    assert reward.format == 1.0
    assert reward.status == "ok"
    return reward.answer


@pytest.mark.parametrize(("answer", "gold"), RIGHT)
def test_right(checker, answer, gold):
    assert verdict(checker, answer, gold) == 1.0


@pytest.mark.parametrize(("answer", "gold"), WRONG)
def test_wrong(checker, answer, gold):
    assert verdict(checker, answer, gold) == 0.0


@pytest.mark.parametrize(
    ("text", "gold", "answer", "form"),
    [
        ("<think>5? <answer>5</answer></think><answer>6</answer>", "5", 0.0, 0.5),
        ("<think>5? <answer>5</answer></think><answer>6</answer>", "6", 1.0, 0.5),
        ("<think>a</think><answer>6", "6", 0.0, 0.25),
        ("6", "6", 0.0, 0.0),
        ("<think>a</think>6</answer>", "6", 0.0, 0.5),
        ("<think>a</think><answer></answer>", "6", 0.0, 1.0),
        ("\n <think>a</think>\n<answer>6</answer> \n", "6", 1.0, 1.0),
        ("<think>a</think><answer>6</answer> And more.", "6", 1.0, 0.25),
        ("<think>a</think><answer>6</answer><answer>7</answer>", "6", 0.0, 0.5),
        ("<think>a</think><answer>6</answer><answer>7</answer>", "7", 1.0, 0.5),
    ],
)
def test_the_two_parts_of_the_reward(checker, text, gold, answer, form):
    (reward,) = grade([text], [gold], checker)
    assert (reward.answer, reward.format, reward.total) == (answer, form, answer + form)
