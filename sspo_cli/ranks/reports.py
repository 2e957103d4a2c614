"""Reports of the ranks in the store of their launcher, which say why a rank ends."""

import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from torch.distributed.rendezvous import rendezvous

from sspo_cli.errors import UserError
from sspo_cli.ranks.keys import DIED, FAILED, LOST, PROCESS, STOPPED
from sspo_cli.ranks.liveness import machine
from sspo_cli.ranks.place import here

CONNECTING = 5.0  # seconds in which a rank that fails before it has joined the others must reach the store


class LostRank(UserError):
    """Raised if another rank has ended or does not answer."""


class EchoedError(LostRank):
    """Raised if another rank on this machine has ended with a UserError, which that rank prints itself."""


def connect(seconds: float) -> Any:
    """Return the store of the launcher; connect to it within `seconds` if this rank is not connected yet."""
    if here.store is None:
        store, rank, _ = next(iter(rendezvous("env://", timeout=timedelta(seconds=seconds))))
        store.set(PROCESS.format(rank), f"{os.getpid()} {machine()}")
        here.store = store
    return here.store


def process_here(store: Any, number: int) -> int | None:
    """Return the process id of a rank, or None if the rank is not on this machine or not connected yet."""
    if not store.check([PROCESS.format(number)]):
        return None
    process, _, where = store.get(PROCESS.format(number)).decode().partition(" ")
    return int(process) if where and where == machine() else None


def report(sentence: str) -> None:
    """Store the reason why this rank ends, for the other ranks and the launcher."""
    with suppress(Exception):  # the launcher is gone
        connect(CONNECTING).set(FAILED.format(os.environ["RANK"]), sentence)


def reported(store: Any, numbers: Sequence[int]) -> dict[int, str]:
    """Return the reasons that ranks have reported, by rank."""
    sentences = {}
    with suppress(Exception):
        for number in numbers:
            if store.check([FAILED.format(number)]):
                sentences[number] = store.get(FAILED.format(number)).decode()
    return sentences


def first_cause(store: Any, numbers: Sequence[int], remedy: str) -> LostRank | None:
    """Return the error that one of these ranks has reported as its own, for the ranks that lose it; None if there is none.

    remedy  end of the message if the rank was killed, hangs or has crashed
    """
    for number, sentence in reported(store, numbers).items():
        if sentence.startswith(DIED):
            return LostRank(f"rank {number}: {sentence.removeprefix(DIED)}; {remedy}")
        if not sentence.startswith((LOST, STOPPED)):
            kind = EchoedError if process_here(store, number) else LostRank
            return kind(f"rank {number}: {sentence}")
    return None
