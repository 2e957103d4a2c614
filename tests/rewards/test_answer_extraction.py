"""Tests of the extraction of the bare answer from a completion, with and without tags."""

import time

import pytest

from sspo_cli.rewards import extract_answer
from sspo_cli.rewards.answer import prepared, quick_verdict
from sspo_cli.rewards.reading import Reading, peel, read_answer, read_gold


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
        (r"\boxed{3 and \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\\boxed{\\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\begin{pmatrix} a \\ be \end{pmatrix}", r"\begin{pmatrix} a \\ be \end{pmatrix}"),
        ("**7**", "7"),
        ("*7*", "7"),
        ("`7`", "7"),
        ("```\n7\n```", "7"),
        ("#### 7", "7"),
        (r"\boxed 7", "7"),
        (r"$\boxed 7$.", "7"),
        (r"\fbox{7}", "7"),
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
    ("content", "answer"),
    [
        ("The answer is 42", "42"),
        ("Janet makes $18 a day.", "$18"),
        ("So it is $\\frac{1}{2}$ in all", r"\frac{1}{2}"),
        ("42, that is 42", "42"),
        ("The area is 42 m^2", "42"),
        ("There are 42 ways to go and come back", "42"),
        ("So 3+5-2", "3+5-2"),
        (r"\sin x + \log 2", r"\sin x + \log 2"),
        ("New York", "New York"),
    ],
)
def test_of_a_sentence_between_tags_its_only_number_or_formula_counts(content, answer):
    assert extract_answer(f"<answer>{content}</answer>") == answer


@pytest.mark.parametrize(
    "content",
    [
        "41 or 42",
        "first 41, then 42",
        r"It is $41$ or \(42\)",
        "forty-one or 42",
        "not 42",
        "It isn't $42$",
        r"not \boxed{42}",
        "42 is wrong",
        "maybe 42",
        "at least 42",
        "half of 42",
        "42 thousand",
        "not x^2+42",
    ],
)
def test_a_sentence_that_names_several_or_takes_back_its_only_number_stays_whole(content):
    assert extract_answer(f"<answer>{content}</answer>") == content


@pytest.mark.parametrize("text", ["June 20", "xy - 1", "2Ax", "The 3rd of May", r"\text{June 20}"])
def test_what_is_spelt_as_the_gold_keeps_its_words(text):
    answer = extract_answer(f"<answer>{text}</answer>", [text.replace(" - ", "-")])
    assert answer == text
    assert quick_verdict(*prepared(answer, text)) is True


def test_a_factor_or_minuend_in_letters_is_no_sentence_about_a_number():
    assert extract_answer("<answer>xy - 1</answer>", ["1"]) == "xy - 1"


@pytest.mark.parametrize(
    ("text", "reader", "answer"),
    [
        ("<answer>1</answer> or \\boxed{2} or 3", "tags", "1"),
        (r"First \boxed{3}, then \boxed{5}, in 7 steps", "boxed", "5"),
        (r"It takes \boxed{42 dollars}", "boxed", "42"),
        (r"\boxed{1} $\boxed{2}$ so $x = \boxed{3} \text{ or } \boxed{4}$.", "boxed", "3, 4"),
        (r"$\boxed{1}$. Or $\boxed{2}$, $\boxed{3}$ and $\boxed{4}$ of 5", "boxed", "2, 3, 4"),
        (r"so $\boxed{5}$ and $\boxed{6}$", "boxed", "5, 6"),
        (r"\boxed{5}, \boxed{6}", "boxed", "5, 6"),
        (r"\boxed{5} \text{ and } \boxed{6}", "boxed", "5, 6"),
        (r"\boxed{5}, \boxed{5}", "boxed", "5"),
        (r"\boxed{5}. So \boxed{6}", "boxed", "6"),
        ("The answer is 12. No: 13.", "number", "13"),
        ("**Answer:** 3\n\n**Explanation:** there are 12 months.", "number", "3"),
        ("Answer: 3\nConfidence: 95%", "number", "3"),
        ("Answer: 3\n\nQuestion: more?\nAnswer: 5 apples", "number", "5"),
        ("#### 72\nThat is 3 times 24.", "number", "72"),
        ("Answer: B\nIn 3 steps.", "text", "B"),
        ("Answer: we add 3 and 4,\nso 7.", "number", "7"),
        ("The answer is x^2 + 1.", "formula", "x^2 + 1"),
        ("The answer is 5 or 6.", "formula", "5 or 6"),
        ("The correct option is **B**.", "text", "B"),
        ("A: 1/2", "formula", "1/2"),
        ("答案是18", "number", "18"),
        ("答案是-18元。", "number", "-18"),
        ("The length is 2√3 cm.", "formula", "2√3"),
        ("The angle is π/6.", "formula", "π/6"),
        ("It is 1.5 × 10^3 m away", "formula", "1.5 × 10^3"),
        ("100 percent", "number", "100 percent"),
        ("#### 1,234", "number", "1,234"),
        ("A: 250", "number", "250"),
        ("x = -5", "number", "-5"),
        ("The answer is **42**.", "number", "42"),
        ("She pays $5 and $7.50 more, 1,200.75 in all", "number", "1,200.75"),
        ("He paid $5, so $ 12 is left", "number", "12"),
        ("So 60/3 = 20 m² remain", "number", "20"),
        ("It is −5 degrees", "number", "−5"),
        ("36 m^2 of x2", "number", "36"),
        ("down by 28 percent", "number", "28 percent"),
        ("the ratio of both is 3:2", "formula", "3:2"),
        ("with probability 2/3.", "formula", "2/3"),
        ("The point is (1, 2).", "formula", "(1, 2)"),
        ("3+5-2", "formula", "3+5-2"),
        ("so we count 3 + 5 - 2", "formula", "3 + 5 - 2"),
        (r"$\frac{1}{2}$", "formula", r"\frac{1}{2}"),
        (r"Of the 3, it is \[ x = \frac{1}{2} \]", "formula", r"x = \frac{1}{2}"),
        (r"Hence the answer is -2\sqrt{3}.", "formula", r"-2\sqrt{3}"),
        ("The roots are 5: $1$, $2$ and $3$.", "formula", "1, 2, 3"),
        ("Answer $ 9 $", "number", "9"),
        ("x^2+2x+1", "formula", "x^2+2x+1"),
        (r"\begin{pmatrix}1 & 0\end{pmatrix}", "formula", r"\begin{pmatrix}1 & 0\end{pmatrix}"),
        ("**Final Answer:** Yes.", "text", "Yes"),
        ("The answer is (C).", "text", "(C)"),
        ("<think>It is 41</think> so 42", "number", "42"),
        (r"I think \boxed{41} </think> 42", "number", "42"),
        (r"<think>It is \boxed{41}", None, None),
        (r"<think>It is \boxed{41}</think>", None, None),
        (r"unfinished: \boxed{41", "number", "41"),
        ("<answer>41", "number", "41"),
        ("I do not know.", None, None),
        ("the code AZYUK2A", None, None),
        ("", None, None),
    ],
)
def test_an_untagged_text_is_read_by_its_last_box_or_else_its_last_formula_or_number(text, reader, answer):
    assert read_answer(text) == Reading(answer, reader)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("42", "42"),
        ("She sold 48/2 = <<48/2=24>>24 clips.\n#### 1,072", "1,072"),
        (r"So $x = 3$, thus \boxed{5} of 7.", "5"),
        (r"$\\frac12$", r"\frac12"),
        ("0.06 yuan", "0.06"),
        ("3 or 5", "3 or 5"),
        ("2 hours 30 minutes", "2 hours 30 minutes"),
        ("answer is 42", "42"),
        (r"\text{Evelyn}", r"\text{Evelyn}"),
        ("<answer>7</answer>", "7"),
        ("We see 3. " * 200 + "The final answer is $28$.", "28"),
    ],
)
def test_gold_fields(gold, answer):
    assert read_gold(gold) == answer


PIECES = [
    "<answer>",
    "</answer>",
    r"\boxed{",
    "{",
    "$",
    ". ",
    "1 ",
    "1)",
    "\\",
    "1+",
    "1,",
    "(1,",
    " ",
    "1\t",
    "$ ",
    "**",
]
PIECES += [
    r"\(",
    r"\[",
    r"\( \[",
    r"\frac",
    "answer: ",
    "answer is a ",
    "$$",
    r"\$",
    "$1$,",
    "\n",
    "1.",
    "1 000",
    "^{",
    "a",
]


@pytest.mark.parametrize("piece", PIECES)
def test_a_megabyte_costs_no_time(piece):
    start = time.process_time()
    for text in (piece * (1_000_000 // len(piece)), piece * (999 // len(piece))):
        answer = extract_answer(f"<answer>{text}</answer>")
        assert answer is None or quick_verdict(*prepared(answer, "1")) in (True, False, None)
        read_answer(text[:200_000])
    assert time.process_time() - start < 2.0
