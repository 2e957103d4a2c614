"""Training problems that a benchmark asks too: found by their normalised text, counted, and left out of training."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import xxhash

from sspo_cli.errors import UserError
from sspo_cli.rewards.notation import INVISIBLE
from sspo_cli.tasks.dapo import INSTRUCTION_AFTER, INSTRUCTION_BEFORE
from sspo_cli.types import Problem

_SPELLING = {
    **{chr(code): "'" for code in (0x2018, 0x2019)},
    **{chr(code): '"' for code in (0x201C, 0x201D)},
    **{chr(code): "-" for code in (0x2010, 0x2011, 0x2012, 0x2013, 0x2014, 0x2212)},
    **{power: f"^{digit}" for digit, power in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
}
_LABEL = re.compile(r"^\s*(?:task|problem|question)\s*:\s*", re.IGNORECASE)
# What prompts of published data sets add to a problem.
_INSTRUCTION = re.compile(
    r"(?:please |let'?s )?(?:reason|think) step by step\b[^.\n]*\.?|(?:and )?put your final answer (?:with)?in \\boxed\{\}\.?"
    rf"|{re.escape(INSTRUCTION_BEFORE)}|{re.escape(INSTRUCTION_AFTER)}",
    re.IGNORECASE,
)
_LATEX_LAYOUT = re.compile(r"\\(?:left|right|displaystyle|[,;:! ()\[\]])|\\?\$|~")
_FRACTION = re.compile(r"\\[dt]frac")
_SPACE = re.compile(r"(?<!\w)\s+|\s+(?!\w)")


@dataclass(frozen=True, slots=True)
class Overlap:
    """Rows of a training task that ask what a benchmark asks.

    rows      of the task
    of        all rows of the task
    problems  of the benchmark that they ask
    """

    task: str
    benchmark: str
    rows: int
    of: int
    problems: int

    def sentence(self, left_out: bool) -> str:
        """Say what is shared and what came of it."""
        shared = (
            f"{self.rows:,} of the {self.of:,} rows of {self.task} ask what {self.benchmark} asks, {self.problems:,} of its "
            "problems"
        )
        if left_out:
            return f"{shared}; they are left out of training"
        return f"{shared}; they stay in it, so {self.benchmark} says nothing about problems that were not seen"


def normalised(question: str) -> str:
    """Return a question as it is compared: without the layout, the case and the words around it that copies differ in.

    Words, digits and the signs of formulas stay as they are, so that no two problems become one.
    """
    spelled = "".join(_SPELLING.get(letter, letter) for letter in question.translate(INVISIBLE))
    text = unicodedata.normalize("NFKC", spelled)
    text = _INSTRUCTION.sub(" ", _LABEL.sub("", text))
    text = _LATEX_LAYOUT.sub(" ", _FRACTION.sub(r"\\frac", text))
    return _SPACE.sub("", " ".join(text.split())).rstrip(".?").casefold() or question


def question_key(problem: Problem) -> int:
    """Hash what a problem asks: its normalised question, and the data that an episode is given for it."""
    return xxhash.xxh3_64_intdigest(f"{normalised(problem.question)}\0{problem.setup or ''}".encode())


def question_keys(problems: Iterable[Problem]) -> set[int]:
    """Return the distinct keys of problems."""
    return set(map(question_key, problems))


def find_overlaps(
    tasks: Sequence[tuple[str, Sequence[Problem]]], benchmarks: Sequence[tuple[str, Sequence[Problem]]]
) -> list[Overlap]:
    """Return for each task and benchmark, given by their names, what they share, if they share anything."""
    asked = [(name, question_keys(problems)) for name, problems in benchmarks]
    overlaps = []
    for task, problems in tasks:
        keys = list(map(question_key, problems)) if asked else []
        for benchmark, of_benchmark in asked:
            if shared := [key for key in keys if key in of_benchmark]:
                overlaps.append(Overlap(task, benchmark, len(shared), len(keys), len(set(shared))))
    return overlaps


def decontaminate(
    tasks: Sequence[tuple[str, Sequence[Problem]]], benchmarks: Iterable[Problem]
) -> tuple[list[list[Problem]], list[Problem]]:
    """Return of each task the problems that no benchmark asks, and those that were left out.

    Raises UserError if nothing of a task is left.
    """
    asked = question_keys(benchmarks)
    left: list[list[Problem]] = []
    left_out: list[Problem] = []
    for name, problems in tasks:
        left.append([])
        for problem in problems:
            (left_out if asked and question_key(problem) in asked else left[-1]).append(problem)
        if problems and not left[-1]:
            raise UserError(
                f"every problem of task {name} is one of a benchmark of this run, so that nothing is left to train on; train on "
                "others, or set evaluation.decontaminate=false"
            )
    return left, left_out
