"""Copies of benchmark problems are found among training problems in any layout, and nothing else is."""

import pytest
from shared_data import published

from sspo_cli.errors import UserError
from sspo_cli.tasks import codeact, dapo
from sspo_cli.tasks.contamination import Overlap, decontaminate, find_overlaps, normalised
from sspo_cli.types import Problem


def problems(task: str, *questions: str) -> list[Problem]:
    return [Problem(f"train-{number}", question, "1", task) for number, question in enumerate(questions)]


@pytest.mark.parametrize(
    ("question", "copy"),
    [
        ("What is $2+2$?", "Task:\nwhat is  $2 + 2$"),
        ("What is $2+2$?", "Problem: What is \\(2+2\\)?"),
        ("Find \\[\\frac{1}{2}\\left(x+1\\right).\\]", "Find\n$$\\dfrac{1}{2} (x + 1).$$"),
        ("Ann’s “book” costs \\$5 – or 6.", 'Ann\'s "book" costs $5 - or 6.'),
        ("Solve x² = 4.", "Solve x^2 = 4."),
        ("Find $x$.", "Find $x$. Please reason step by step, and put your final answer within \\boxed{}."),
        ("Find $x$.", "Find $x$.\nLet's think step by step and output the final answer within \\boxed{}."),
        ("Ｈow many？", "How many?"),
        ("Find $x$.", f"{dapo.INSTRUCTION_BEFORE}\n\nFind $x$.\n\n{dapo.INSTRUCTION_AFTER}"),
        ("Find\u200b $x$.", "Find $x$."),
    ],
)
def test_copies_of_a_question_are_one(question, copy):
    assert normalised(question) == normalised(copy)


@pytest.mark.parametrize(
    ("question", "other"),
    [
        ("3+5-2", "3-5+2"),
        ("1 2", "12"),
        ("Solve x² = 4.", "Solve x2 = 4."),
        ("Find $x_1$.", "Find $x_2$."),
        ("What is 2.5?", "What is 25?"),
        ("Is it (1,2] or [1,2)?", "Is it [1,2] or (1,2)?"),
        ("?", "!"),
        ("How many zeros has $100!$?", "How many zeros has $100$?"),
    ],
)
def test_other_questions_stay_apart(question, other):
    assert normalised(question) != normalised(other)


def test_every_pair_of_task_and_benchmark_is_counted_and_left_out():
    one = problems("file", "a", "Task: b", "c", "B", "d")
    two = problems("gsm8k", "c", "e")
    asked = [("x", problems("math500", "b", "c", "z")), ("y", problems("aime24", "e")), ("z", problems("aime25", "q"))]
    assert find_overlaps([("mine", one), ("gsm8k", two)], asked) == [
        Overlap("mine", "x", rows=3, of=5, problems=2),
        Overlap("gsm8k", "x", rows=1, of=2, problems=1),
        Overlap("gsm8k", "y", rows=1, of=2, problems=1),
    ]
    left, left_out = decontaminate([("mine", one), ("gsm8k", two[:1] + problems("gsm8k", "f"))], asked[0][1])
    assert [[problem.question for problem in of_task] for of_task in left] == [["a", "d"], ["f"]]
    assert [problem.question for problem in left_out] == ["Task: b", "c", "B", "c"]
    with pytest.raises(UserError, match="every problem of task gsm8k is in a benchmark"):
        decontaminate([("gsm8k", two[:1])], asked[0][1])
    assert decontaminate([("gsm8k", two)], ()) == ([two], [])


def test_questions_on_other_tables_are_other_problems():
    asked = Problem("1", "Which is the largest?", "a", "wtq", setup="df = 1")
    other = Problem("2", "Which is the largest?", "b", "codeact", setup="df = 2")
    assert decontaminate([("codeact", [other])], [asked]) == ([[other]], [])


def test_problems_of_math_500_are_found_among_the_tasks_of_code_acting():
    folder = published("codeact/math_train_tasks.jsonl").parent
    rows = list(codeact.more_problems(str(folder), "train"))
    copies = [Problem(f"{n}", p.question.removeprefix("Task:\n"), "0", "math500") for n, p in enumerate(rows[:40:4])]
    asked = {normalised(problem.question) for problem in copies}
    left, left_out = decontaminate([("codeact", rows)], copies)
    assert len(asked) == 10
    assert {normalised(problem.question) for problem in left_out} == asked
    assert len(left[0]) + len(left_out) == len(rows)
