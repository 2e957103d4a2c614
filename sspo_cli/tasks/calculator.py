"""The embedded multi-turn task: arithmetic too hard to do in the head of a small model, and a calculator that does it.

One call: `47*86-129` is run and its value proposed. Two calls: `47*86%*31` asks for the last two digits of 47*86, times
31; the calculator has no `%`, so the second call has to be written from the result of the first. Every result has four
digits: a small model copies by place, and would copy wrongly what is rare among its demonstrations.
The demonstrations are a cold start that leaves something to learn: most guess a wrong answer without a call.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from random import Random

from sspo_cli.errors import UserError
from sspo_cli.types import Problem

SIZES = {"train": 8192, "validation": 512, "test": 512}  # options are tuned on validation, figures are test's
WORKED = 0.3  # share of demonstrations that use the calculator
RESULTS = range(1000, 10_000)
ENVIRONMENT = "calculator"


def problems(path: str | None, split: str) -> Iterator[Problem]:
    """Distinct questions that need one call, always the same ones. Raises UserError for an unknown split, and for a path."""
    return _problems("calculator", _one_call, path, split)


def problems_of_two_calls(path: str | None, split: str) -> Iterator[Problem]:
    """Return problems that need two calls, the second with the first one's result."""
    return _problems("calculator-two", _two_calls, path, split)


def split_of(question: str) -> str:
    """By the question's own text, so that no change of sizes or order can leak a question into another split."""
    part = hashlib.sha256(question.encode()).digest()[0] % 8
    return {0: "test", 1: "validation"}.get(part, "train")


def _problems(
    task: str, make: Callable[[Random], tuple[str, list[tuple[str, int]]]], path: str | None, split: str
) -> Iterator[Problem]:
    if path is not None:
        raise UserError(f"task {task} is made up by the program and reads no path={path}; drop it")
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
        first, digits = a * b, a * b % 100  # of which no leading zero is lost: digits * c would be too small
        if first in RESULTS and digits * c in RESULTS:
            return f"{a}*{b}%*{c}", [(f"{a}*{b}", first), (f"{digits}*{c}", digits * c)]


def _wrong_guess(random: Random, answer: int) -> int:
    """Draw a number of the right size."""
    guess = answer
    while guess == answer:
        guess = random.choice(RESULTS)
    return guess
