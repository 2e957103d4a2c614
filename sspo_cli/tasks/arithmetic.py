"""The embedded default task: generated chains of additions and subtractions of digits, such as `3+5-2+1`.

The cold start's demonstrations have flaws that reinforcement learning can correct: every answer is right, but most omit the
steps that a small model needs, and many break the format.
"""

import hashlib
import itertools
from collections.abc import Iterator
from random import Random

from sspo_cli.errors import UserError
from sspo_cli.types import Problem

SIZES = {"train": 8192, "test": 1024}
OPERANDS = (4, 6)
HIGHEST = 20  # running totals are between 0 and this number
WORKED = 0.4  # share of demonstrations that think step by step; the other demonstrations repeat the question
WELL_FORMED = 0.4  # share of demonstrations in the right format; the other demonstrations have a form in BROKEN
BROKEN = (
    "{thoughts}</think><answer>{answer}</answer>",
    "{thoughts}<answer>{answer}</answer>",
    "<think>{thoughts}<answer>{answer}</answer>",
    "<think>{thoughts}</think><answer>{answer}",
    "<think>{thoughts}</think><answer>{answer}</answer>.",
)


def problems(path: str | None, split: str) -> Iterator[Problem]:
    """Generate the distinct questions of a split.

    Every run gets the same questions. Raises UserError if the split is unknown or a path is given.
    """
    if path is not None:
        raise UserError(f"task arithmetic is generated and does not read path={path}; remove it, or use task `file`")
    if split not in SIZES:
        raise UserError(f"task arithmetic has no split {split}; it has {', '.join(SIZES)}")
    return itertools.islice((problem for problem in _distinct() if split_of(problem.question) == split), SIZES[split])


def split_of(question: str) -> str:
    """Choose the split by a hash of the question, so that new sizes or another order leak no test question into training."""
    return "test" if hashlib.sha256(question.encode()).digest()[0] % 8 == 0 else "train"


def _distinct() -> Iterator[Problem]:
    seen = set()
    for problem in _endless(Random("arithmetic")):
        if problem.question not in seen:
            seen.add(problem.question)
            yield problem


def _endless(random: Random) -> Iterator[Problem]:
    while True:
        total = random.randint(0, 9)
        question, work = str(total), []
        for _ in range(random.randint(*OPERANDS) - 1):
            before = total
            step = random.choice([d for d in range(-9, 10) if 0 <= before + d <= HIGHEST])
            total += step
            question += f"{step:+}"
            work.append(f"{before}{step:+}={total}")
        thoughts = ",".join(work) if random.random() < WORKED else question
        well_formed = random.random() < WELL_FORMED
        form = "<think>{thoughts}</think><answer>{answer}</answer>" if well_formed else random.choice(BROKEN)
        yield Problem(question, question, str(total), "arithmetic", form.format(thoughts=thoughts, answer=total))
