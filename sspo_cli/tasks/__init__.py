"""The tasks: named data sets of problems for training and benchmarks."""

import inspect
from collections.abc import Callable, Iterator
from itertools import islice

from sspo_cli.errors import UserError, did_you_mean
from sspo_cli.tasks import aime, arithmetic, calculator, chains, codeact, dapo, deepmath, file, gsm8k, math500
from sspo_cli.tasks.rows import PLAIN, Layout
from sspo_cli.types import Problem

# Task -> loader, a function of path and split. Loaders that read rows also accept a layout.
TASKS: dict[str, Callable[..., Iterator[Problem]]] = {
    "arithmetic": arithmetic.problems,
    "calculator": calculator.problems,
    "chains": chains.problems,
    "calculator-two": calculator.problems_of_two_calls,
    "gsm8k": gsm8k.problems,
    "deepmath": deepmath.problems,
    "dapo": dapo.problems,
    "codeact": codeact.problems,
    "codeact-tasks": codeact.more_problems,
    "math500": math500.problems,
    "aime24": aime.problems_of_2024,
    "aime25": aime.problems_of_2025,
    "mint": codeact.mint_problems,
    "wtq": codeact.wtq_problems,
    "file": file.problems,
}


def load_problems(
    name: str, *, path: str | None = None, split: str, limit: int | None = None, layout: Layout = PLAIN
) -> list[Problem]:
    """Load the first `limit` problems of a task's split, or all of them.

    path    hub name, local file or folder that replaces the published data set
    layout  configuration and columns of the source, if they differ from those of the published data set

    Raises UserError if the task or the split is unknown, if the source cannot be reached or read or has no problems, if a
    row is not a valid problem, if two problems have the same id, or if `layout` is given for a generated task.
    """
    if name not in TASKS:
        raise UserError(f"unknown task {name}{did_you_mean(name, TASKS)}")
    task = TASKS[name]
    if layout == PLAIN:
        rows = task(path, split)
    elif "layout" in inspect.signature(task).parameters:
        rows = task(path, split, layout)
    else:
        raise UserError(
            f"task {name} has no options config and columns; they are for tasks that read rows, such as `file`"
        )
    problems = list(islice(rows, limit))
    if not problems:
        raise UserError(f"task {name} has no problems in split {split}{f' of {path}' if path else ''}")
    seen: set[str] = set()
    for problem in problems:
        if problem.id in seen:
            raise UserError(
                f"two problems of task {name} have the id {problem.id}; make the ids in {path or 'its data'} unique"
            )
        seen.add(problem.id)
    return problems
