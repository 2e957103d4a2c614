"""Detection and removal of training problems that are also in a benchmark; questions are compared as normalised text."""

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
# Instructions that the prompts of published data sets add to a problem.
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
    """The overlap of a training task and a benchmark.

    rows      number of rows of the task that are also in the benchmark
    of        number of all rows of the task
    problems  number of problems of the benchmark that are also in the task
    """

    task: str
    benchmark: str
    rows: int
    of: int
    problems: int

    def sentence(self, left_out: bool) -> str:
        """Describe the overlap and its consequence.

        left_out  True if the shared problems are left out of training
        """
        shared = (
            f"{self.rows:,} of the {self.of:,} rows of {self.task} ask {self.problems:,} problem{'s' * (self.problems != 1)} of "
            f"{self.benchmark}"
        )
        if left_out:
            return f"{shared}; they are left out of training"
        return f"{shared}; they stay in training, so {self.benchmark} does not measure unseen problems"


def normalised(question: str) -> str:
    """Normalize a question for comparison: strip the layout, case and instructions in which copies differ.

    Words, digits and signs of formulas are kept, so that different problems stay different.
    """
    spelled = "".join(_SPELLING.get(letter, letter) for letter in question.translate(INVISIBLE))
    text = unicodedata.normalize("NFKC", spelled)
    text = _INSTRUCTION.sub(" ", _LABEL.sub("", text))
    text = _LATEX_LAYOUT.sub(" ", _FRACTION.sub(r"\\frac", text))
    return _SPACE.sub("", " ".join(text.split())).rstrip(".?").casefold() or question


def question_key(problem: Problem) -> int:
    """Hash the normalised question of a problem and the setup code of its episodes."""
    return xxhash.xxh3_64_intdigest(f"{normalised(problem.question)}\0{problem.setup or ''}".encode())


def question_keys(problems: Iterable[Problem]) -> set[int]:
    """Return the distinct keys of problems."""
    return set(map(question_key, problems))


def find_overlaps(
    tasks: Sequence[tuple[str, Sequence[Problem]]], benchmarks: Sequence[tuple[str, Sequence[Problem]]]
) -> list[Overlap]:
    """Return the overlap of every task with every benchmark; pairs without a shared problem are omitted.

    tasks, benchmarks  pairs (name, problems)
    """
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
    """Split off the training problems that are also in a benchmark.

    Returns the remaining problems of each task, and the removed problems of all tasks together. Raises UserError if no
    problem of a task is left.
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
                f"every problem of task {name} is in a benchmark of this run, so nothing is left to train on; train on "
                "another task, or set evaluation.decontaminate=false"
            )
    return left, left_out
