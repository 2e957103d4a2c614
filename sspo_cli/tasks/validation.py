"""Validation problems, held out of the training tasks to choose the best checkpoint without a test set."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from random import Random

from sspo_cli.errors import UserError, quantity
from sspo_cli.seeds import derive_seed
from sspo_cli.tasks.contamination import question_key
from sspo_cli.types import Problem

SEED = 0  # independent of the run's seed, so that all runs hold out the same problems


def hold_out(
    problems_by_task: Sequence[Sequence[Problem]], weights: Sequence[float], count: int
) -> tuple[list[list[Problem]], list[Problem]]:
    """Hold out `count` problems with distinct questions, from each task in proportion to its weight.

    Returns the remaining problems of each task, and the held-out problems. No remaining problem asks a held-out question. The
    ids of the held-out problems are made unique across tasks. Raises UserError if a task has too few problems.
    """
    held_out: list[Problem] = []
    for number, (problems, share) in enumerate(zip(problems_by_task, shares(weights, count), strict=True)):
        before = set(map(question_key, held_out))
        candidates = {question_key(problem): problem for problem in problems if question_key(problem) not in before}
        if share and share >= len(candidates):
            raise UserError(
                f"evaluation.validation = {count} would hold out {quantity(share, 'problem')} of task {problems[0].task}, "
                f"which has {len(candidates)} different problems, and leave none to train on; lower it"
            )
        drawn = Random(derive_seed(SEED, "validation", number)).sample(list(candidates.values()), share)
        held_out += [replace(problem, id=f"{problem.task}-{number}-{problem.id}") for problem in drawn]
    left = [without(problems, held_out) for problems in problems_by_task]
    for problems, rest in zip(problems_by_task, left, strict=True):
        if not rest:
            raise UserError(
                f"evaluation.validation = {count} holds out every question of task {problems[0].task}; lower it"
            )
    return left, held_out


def without(problems: Iterable[Problem], held_out: Iterable[Problem]) -> list[Problem]:
    """Drop the problems whose question is held out."""
    questions = set(map(question_key, held_out))
    return [problem for problem in problems if question_key(problem) not in questions]


def shares(weights: Sequence[float], count: int) -> list[int]:
    """Split `count` into integers in proportion to the weights, by the method of largest remainders (a tie favors the first)."""
    exact = [count * weight / sum(weights) for weight in weights]
    parts = [int(part) for part in exact]
    by_remainder = sorted(range(len(parts)), key=lambda task: parts[task] - exact[task])
    for task in by_remainder[: count - sum(parts)]:
        parts[task] += 1
    return parts
