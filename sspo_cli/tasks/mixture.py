"""Mixture of several tasks in one endless stream."""

from collections.abc import Iterator, Sequence
from random import Random
from typing import TypeVar

from sspo_cli.seeds import derive_seed

T = TypeVar("T")


def problem_stream(problems_by_task: Sequence[Sequence[T]], weights: Sequence[float], seed: int) -> Iterator[T]:
    """Yield problems without end, in an order that depends only on the seed.

    Each draw chooses a task by weight and takes its next problem. A task's problems are drawn without replacement and
    reshuffled every epoch. Only an index is drawn for each problem, so that `islice(stream, n, None)` cheaply resumes at
    draw n.
    """
    orders = [
        _problem_order(len(problems), derive_seed(seed, "order", task))
        for task, problems in enumerate(problems_by_task)
    ]
    choose, tasks = Random(derive_seed(seed, "mixture")), range(len(orders))
    while True:
        (task,) = choose.choices(tasks, weights)
        yield problems_by_task[task][next(orders[task])]


def _problem_order(count: int, seed: int) -> Iterator[int]:
    """Yield indices of problems without end, reshuffled every epoch."""
    random = Random(seed)
    while True:
        yield from random.sample(range(count), count)
