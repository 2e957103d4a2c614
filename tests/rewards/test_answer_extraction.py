"""From a completion to its bare answer, and the verdicts that need no computer algebra."""

import time

import pytest

from sspo_cli.rewards import extract_answer
from sspo_cli.rewards.answer import peel, quick_verdict


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>a</think><answer>42</answer>", "42"),
        ("<answer> \n42 \n</answer> and more", "42"),
        ("no tags, 42", None),
        ("<answer>42", None),
        ("42</answer>", None),
        ("</answer>42<answer>", None),
        ("<answer></answer>", ""),
        ("<answer>1</answer> no: <answer>2</answer>", "2"),
        ("<answer>1</answer> or <answer>2", "1"),
        ("<think>put it in <answer> </answer> tags</think><answer>7</answer>", "7"),
        ("<answer>1<answer>2</answer>3</answer>", "2"),
        ("<answer>5</answer></answer>", "5"),
        (r"<answer>\boxed{42}</answer>", "42"),
        (r"<answer>$\boxed{\frac{1}{2}}$.</answer>", r"\frac{1}{2}"),
    ],
)
def test_the_last_complete_pair_counts(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("wrapped", "bare"),
    [
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{ 72. }", "72"),
        (r"\boxed {\boxed{3}}", "3"),
        (r"The answer is \boxed{12}, since it must.", "12"),
        (r"\boxed{1} and \boxed{2}", "1, 2"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ 1 \right.}", r"\left\{ 1 \right."),
        (r"\boxed{3", r"\boxed{3"),
        ("$x$", "x"),
        ("$$ x $$", "x"),
        (r"\( x \)", "x"),
        (r"\[ x \]", "x"),
        ("$x$ or $y$", "$x$ or $y$"),
        (r"\(x\) or \(y\)", r"\(x\) or \(y\)"),
        (r"\$5", r"\$5"),
        ("$", "$"),
        ("72.", "72"),
        ("0.333...", "0.333..."),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
        ("{1}", "{1}"),
    ],
)
def test_peeling(wrapped, bare):
    assert peel(wrapped) == bare


@pytest.mark.parametrize(
    ("prediction", "gold", "equal"),
    [
        ("25", "025", True),
        ("1,234", "1234", True),
        (r"10,\!080", "10080", True),
        ("+7", "7", True),
        ("-7", "7", False),
        ("12,34", "1234", None),  # two numbers, or a slip: computer algebra may say
        ("8", "9", False),
        ("same text", "same text", True),
        ("x" * 5000, "x", False),
        ("9" * 41, "9", None),
        (r"\frac{1}{2}", "0.5", None),
        ("7.0", "7", None),
    ],
)
def test_quick_verdicts(prediction, gold, equal):
    assert quick_verdict(prediction, gold) is equal


@pytest.mark.parametrize("prediction", ["3+5-2", "(3 + 5) - 2", "2*3", r"2 \times 3", r"2\cdot 3", "x=3+5-2", "8-2"])
def test_the_question_again_is_no_answer(prediction):
    assert quick_verdict(prediction, "6") is False


@pytest.mark.parametrize(
    ("prediction", "gold"), [("12/2", "6"), ("3+5-2=6", "6"), ("2+x", "x+2"), ("-6", "x"), ("(-6)", "-6")]
)
def test_finished_answers_are_not_taken_for_the_question(prediction, gold):
    assert quick_verdict(prediction, gold) is None


@pytest.mark.parametrize("piece", ["<answer>", "</answer>", r"\boxed{", "{", "$", ". ", "1 ", "1)", "\\"])
def test_a_megabyte_costs_no_time(piece):
    start = time.perf_counter()
    for text in (piece * (1_000_000 // len(piece)), piece * (999 // len(piece))):
        answer = extract_answer(f"<answer>{text}</answer>")
        assert answer is None or quick_verdict(answer, "1") in (True, False, None)
    assert time.perf_counter() - start < 2.0
