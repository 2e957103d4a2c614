"""The place of this process among the ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Place:
    """The place of a process among the ranks."""

    rank: int = 0
    size: int = 1
    store: Any = None  # where ranks and their launcher report failures
    alone: bool = False  # inside of what the first rank does alone
    reported_at: float = 0.0  # when the first rank last reported to the others that it still works alone
    waited: float = 0.0  # seconds in exchanges since they were asked for


here = Place()


def size() -> int:
    """Return the number of ranks."""
    return here.size


def rank() -> int:
    """Return this rank's number, from 0."""
    return here.rank


def is_first() -> bool:
    """Report whether this rank writes the run's folder; True if there is only one."""
    return here.rank == 0


def share(count: int) -> slice:
    """Return this rank's slice of `count` items; the lengths of two ranks' slices differ by at most one."""
    return slice(count * rank() // size(), count * (rank() + 1) // size())


@contextmanager
def assuming_size(count: int) -> Iterator[None]:
    """Make a single process check a run as one of `count` ranks would, without communication."""
    here.size, here.alone = count, True
    try:
        yield
    finally:
        here.size, here.alone = 1, False
