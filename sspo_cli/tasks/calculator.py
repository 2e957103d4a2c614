"""The embedded multi-turn task: arithmetic that is too hard for a small model without its calculator.

A question such as `47*86-129` needs one call: the policy sends the expression to the calculator and proposes the result. A
question such as `47*86%*31` needs two calls. It means: the last two digits of 47*86, times 31. The calculator has no `%`, so
the second call must use the result of the first call. Every result has four digits, because a small model copies digits by
position and miscopies results whose length is rare in its demonstrations.

The cold start's demonstrations have a flaw that reinforcement learning can correct: most propose a wrong guess without a call.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from random import Random

from sspo_cli.errors import UserError
from sspo_cli.types import Problem

SIZES = {"train": 8192, "validation": 512, "test": 512}  # settings are tuned on validation; test is for results
WORKED = 0.3  # share of demonstrations that use the calculator
RESULTS = range(1000, 10_000)
ENVIRONMENT = "calculator"


def problems(path: str | None, split: str) -> Iterator[Problem]:
    """Generate distinct questions that need one call.

    Every run gets the same questions. Raises UserError if the split is unknown or a path is given.
    """
    return _problems("calculator", _one_call, path, split)


def problems_of_two_calls(path: str | None, split: str) -> Iterator[Problem]:
    """Generate questions that need two calls; the second call uses the result of the first.

    Raises UserError in the same cases as `problems`.
    """
    return _problems("calculator-two", _two_calls, path, split)


def split_of(question: str) -> str:
    """Choose the split by a hash of the question, so that new sizes or another order leave each question in its split."""
    part = hashlib.sha256(question.encode()).digest()[0] % 8
    return {0: "test", 1: "validation"}.get(part, "train")


def _problems(
    task: str, make: Callable[[Random], tuple[str, list[tuple[str, int]]]], path: str | None, split: str
) -> Iterator[Problem]:
    if path is not None:
        raise UserError(f"task {task} is generated and does not read path={path}; remove it")
    if split not in SIZES:
        raise UserError(f"task {task} has no split {split}; it has {', '.join(SIZES)}")
    of_split = (problem for problem in _distinct(task, make) if split_of(problem.question) == split)
    return itertools.islice(of_split, SIZES[split])


def _distinct(task: str, make: Callable[[Random], tuple[str, list[tuple[str, int]]]]) -> Iterator[Problem]:
    random = Random(task)
    seen: set[str] = set()
    while True:
        question, calls = make(random)
        answer = calls[-1][1]
        worked, guess = random.random() < WORKED, _wrong_guess(random, answer)
        if question not in seen:
            seen.add(question)
            turns = [text for expression, value in calls for text in (f"<execute>{expression}</execute>", str(value))]
            episode = (*turns, f"<solution>{answer}</solution>") if worked else (f"<solution>{guess}</solution>",)
            yield Problem(question, question, str(answer), task, environment=ENVIRONMENT, episode=episode)


def _one_call(random: Random) -> tuple[str, list[tuple[str, int]]]:
    while True:
        a, b, c = random.randint(11, 99), random.randint(11, 99), random.randint(100, 999)
        if random.random() < 0.5:
            c = -c
        question = f"{a}*{b}{c:+}"
        if a * b + c in RESULTS:
            return question, [(question, a * b + c)]


def _two_calls(random: Random) -> tuple[str, list[tuple[str, int]]]:
    while True:
        a, b, c = (random.randint(11, 99) for _ in range(3))
        first, digits = a * b, a * b % 100
        if first in RESULTS and digits * c in RESULTS:
            return f"{a}*{b}%*{c}", [(f"{a}*{b}", first), (f"{digits}*{c}", digits * c)]


def _wrong_guess(random: Random, answer: int) -> int:
    """Draw a wrong answer of similar size."""
    guess = answer
    while guess == answer:
        guess = random.choice(RESULTS)
    return guess
