"""Exchanges of objects and numbers between the ranks. All ranks must call them, in the same order, on the main thread."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sspo_cli.errors import UserError
from sspo_cli.ranks.joining import patience
from sspo_cli.ranks.place import here, is_first, rank, size

T = TypeVar("T")
P = ParamSpec("P")
WORKING = "working"  # broadcast by the first rank in place of the result, which follows


class SharedError(UserError):
    """A UserError that the first rank raises as well, and reports."""


def gather(work: Callable[[], Sequence[T]]) -> list[T]:
    """Run `work` on each rank, and return the items of all ranks, in the order of the ranks.

    A UserError of one rank is raised on all of them.
    """
    if size() == 1:
        return list(work())
    error = ""
    mine: list[T] = []
    try:
        mine = list(work())
    except UserError as refused:
        error = str(refused)
    shares: list[tuple[str, list[T]]] = [("", [])] * size()
    with _waiting():
        dist.all_gather_object(shares, (error, mine))
    for number, (sentence, _) in enumerate(shares):
        if sentence:
            common = all(text == sentence for text, _ in shares)
            sentence = sentence if common else f"rank {number}: {sentence}"
            raise UserError(sentence) if is_first() else SharedError(sentence)
    return [item for _, part in shares for item in part]


def on_first(work: Callable[[], T]) -> T:
    """Run `work` on the first rank; return its result on all ranks, or raise its UserError on all of them.

    Work that can take longer than ranks wait for one another must call `still_working`.
    """
    if size() == 1 or here.alone:
        return work()
    outcome: list[Any] = [None]
    error: UserError | None = None
    if is_first():
        here.alone, here.reported_at = True, time.monotonic()
        try:
            outcome = [("", work())]
        except UserError as refused:
            error, outcome = refused, [(str(refused), None)]
        finally:
            here.alone = False
    with _waiting():
        dist.broadcast_object_list(outcome, src=0)
        while outcome == [WORKING]:
            dist.broadcast_object_list(outcome, src=0)
    sentence, result = outcome[0]
    if sentence:
        raise error or SharedError(sentence)
    return result


def still_working() -> None:
    """Make the other ranks wait longer for the work of `on_first`, which calls this function. Does nothing anywhere else."""
    if here.alone and dist.is_initialized() and time.monotonic() > here.reported_at + patience() / 4:
        dist.broadcast_object_list([WORKING], src=0)
        here.reported_at = time.monotonic()


def by_first(method: Callable[P, T]) -> Callable[P, T]:
    """Make a function run on the first rank only. All ranks must call it, and all get its result."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return on_first(lambda: method(*args, **kwargs))

    return call


def add(*tensors: Tensor) -> None:
    """Sum CPU tensors of one dtype over the ranks, in place. The sums are exact if all ranks except one have zeros."""
    if size() > 1:
        # A single exchange, because each one takes a while to start.
        sums = torch.cat([tensor.flatten() for tensor in tensors])
        with _waiting():
            dist.all_reduce(sums)
        for tensor, values in zip(tensors, sums.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(values.view_as(tensor))


def every(values: Sequence[float]) -> list[list[float]]:
    """Return the values of each rank, in the order of the ranks."""
    rows = torch.zeros(size(), len(values), dtype=torch.float64)
    rows[rank()] = torch.tensor(values, dtype=torch.float64)
    add(rows)
    return rows.tolist()


def total(value: float) -> float:
    """Return the sum of the ranks' values."""
    tensor = torch.tensor(value, dtype=torch.float64)
    add(tensor)
    return tensor.item()


def anywhere(flag: bool) -> bool:
    """Report whether the flag is set on any rank."""
    count = torch.tensor(int(flag))
    add(count)
    return bool(count)


def waited() -> float:
    """Return the seconds that this rank has spent in exchanges since the last call."""
    seconds, here.waited = here.waited, 0.0
    return seconds


@contextmanager
def _waiting() -> Iterator[None]:
    began = time.perf_counter()
    yield
    here.waited += time.perf_counter() - began
