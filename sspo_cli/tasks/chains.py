"""The task of the second study: generated chains of three to five operands such as `12-5+8-1`.

The demonstrations of the cold start come from a teacher with four bad habits. Each habit leads to wrong answers in some
questions. A cold-started policy can therefore calculate, but makes several kinds of mistakes more often than not, and
reinforcement learning can correct each kind separately. Development, study and cold start use disjoint sets of problems.
"""

import hashlib
import itertools
from collections.abc import Iterator
from random import Random

from sspo_cli.errors import UserError
from sspo_cli.types import Problem

SIZES = {
    "train": 3072,
    "test": 1024,
    "demonstrations": 4096,  # only for the cold start
    "development": 1024,  # for choosing the task, model and budget of the study, together with the next split
    "development-test": 512,
}
OPERANDS = (3, 5)
HIGHEST = 20  # right running totals are between 0 and this number
# Bad habit -> probability that the teacher follows it in a step or question to which it applies.
HABITS = {
    "drop": 0.6,  # leaves out a step that adds 7, 8 or 9
    "sign": 0.65,  # adds 1 or 2 instead of subtracting it
    "early": 0.7,  # answers with the total before the last step, if this step adds 1 to 4
    "guess": 0.7,  # repeats a question of five operands instead of working it out, and answers with a random total
}
# The split of each sixteenth of all questions.
PARTS = ("demonstrations",) * 6 + ("train",) * 4 + ("test",) * 3 + ("development",) * 2 + ("development-test",)


def problems(path: str | None, split: str) -> Iterator[Problem]:
    """Generate the distinct questions of a split.

    Every run gets the same questions. Raises UserError if the split is unknown or a path is given.
    """
    if path is not None:
        raise UserError(f"task chains is generated and does not read path={path}; remove it")
    if split not in SIZES:
        raise UserError(f"task chains has no split {split}; it has {', '.join(SIZES)}")
    return itertools.islice((problem for problem in _distinct() if split_of(problem.question) == split), SIZES[split])


def split_of(question: str) -> str:
    """Choose the split by a hash of the question, so that new sizes or another order leave each question in its split."""
    return PARTS[hashlib.sha256(question.encode()).digest()[0] % len(PARTS)]


def habits_of(steps: list[int]) -> set[str]:
    """Return the keys of `HABITS` that can lead to a wrong answer to a question with these steps."""
    return {
        *({"drop"} if any(step >= 7 for step in steps) else ()),
        *({"sign"} if any(step in (-1, -2) for step in steps) else ()),
        *({"early"} if 1 <= steps[-1] <= 4 else ()),
        *({"guess"} if len(steps) + 1 == OPERANDS[1] else ()),
    }


def _distinct() -> Iterator[Problem]:
    random, seen = Random("chains"), set()
    while True:
        total = first = random.randint(0, HIGHEST)
        steps = []
        for _ in range(random.randint(*OPERANDS) - 1):
            steps.append(random.choice([step for step in range(-9, 10) if step and 0 <= total + step <= HIGHEST]))
            total += steps[-1]
        question = str(first) + "".join(f"{step:+}" for step in steps)
        demonstration = _demonstration(random, question, first, steps)
        if question not in seen:
            seen.add(question)
            yield Problem(question, question, str(total), "chains", demonstration)


def _demonstration(random: Random, question: str, first: int, steps: list[int]) -> str:
    """Return the teacher's completion, which contains the mistakes of the habits that the teacher follows.

    The teacher draws the mistakes again if a running total is not between 0 and `HIGHEST`.
    """
    if len(steps) + 1 == OPERANDS[1] and random.random() < HABITS["guess"]:
        return f"<think>{question}</think><answer>{random.randint(0, HIGHEST)}</answer>"
    while True:
        totals, work = [first], []
        for step in steps:
            if step >= 7 and random.random() < HABITS["drop"]:
                continue
            taken = -step if step in (-1, -2) and random.random() < HABITS["sign"] else step
            work.append(f"{totals[-1]}{taken:+}={totals[-1] + taken}")
            totals.append(totals[-1] + taken)
        if all(0 <= total <= HIGHEST for total in totals) and work:
            is_early = 1 <= steps[-1] <= 4 and random.random() < HABITS["early"]
            return f"<think>{','.join(work)}</think><answer>{totals[-2 if is_early else -1]}</answer>"
