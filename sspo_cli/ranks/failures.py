"""Reports of the failures of ranks: which rank failed and why, printed once, in one sentence."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch.distributed as dist

from sspo_cli.errors import UserError, first_line
from sspo_cli.interruption import Interrupted
from sspo_cli.launchers import SUPERVISED, is_first_rank
from sspo_cli.ranks.exchange import SharedError
from sspo_cli.ranks.heartbeat import rank_has_ended
from sspo_cli.ranks.joining import PATIENCE, patience
from sspo_cli.ranks.keys import FAILED, LOST, NOTICED, STOPPED
from sspo_cli.ranks.place import here, is_first, rank, size

REPORT_WAIT = 3.0  # seconds until a rank that fails, or notices a failure, has surely reported it
# Phrases in torch's errors about a peer that has ended or does not answer; most of them are plain RuntimeErrors.
LOSS_PHRASES = ("gloo", "connection closed by peer", "connection reset", "timed out", "timeout", "nccl", "broken pipe")


class LostRank(UserError):
    """Raised if another rank has ended or does not answer."""


@contextmanager
def explained_loss(remedy: str) -> Iterator[None]:
    """Convert torch's errors about another rank that has ended or does not answer to a LostRank that explains the error.

    remedy  end of the message
    """
    try:
        yield
    except BaseException as error:  # torch's CheckpointException is not a subclass of Exception
        if not says_lost(error):
            raise
        with suppress(Exception):  # the launcher is gone
            here.store.set(NOTICED.format(rank()), "")
        raise LostRank(f"{_why_lost(error)}; {remedy}") from error


def says_lost(error: BaseException) -> bool:
    """Report whether an exception of torch means that another rank has ended or does not answer."""
    if size() == 1 or isinstance(error, UserError | KeyboardInterrupt | SystemExit):
        return False
    if isinstance(error, dist.DistError) or type(error).__name__ == "CheckpointException":
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in LOSS_PHRASES)


def _why_lost(error: BaseException) -> str:
    """Describe which rank is lost and why, as reported, or because it is the only rank that has not noticed a failure."""
    others = [number for number in range(size()) if number != rank()]
    deadline = time.monotonic() + REPORT_WAIT
    while time.monotonic() < deadline:
        for number, sentence in reported(here.store, others).items():
            if not sentence.startswith((LOST, STOPPED)):
                return f"rank {number}: {sentence}"
        time.sleep(0.1)
    with suppress(Exception):  # the launcher is gone, and the store with it
        late = [number for number in others if not here.store.check([NOTICED.format(number)])]
        if gone := [number for number in late if rank_has_ended(here.store, number)]:
            return f"rank {gone[0]} has ended without a report: it was killed, or it crashed; see its output above"
        if late and any(word in str(error).lower() for word in ("timed out", "timeout")):
            names = " and ".join(f"rank {number}" for number in late)
            return f"{names} did not answer for {patience():g} seconds ({PATIENCE}): it hangs, or its work takes longer"
    return f"another rank has ended, or did not answer for {patience():g} seconds ({first_line(error)[:200]})"


def report(sentence: str) -> None:
    """Store the reason why this rank ends, for the other ranks and the launcher."""
    with suppress(Exception):  # it is gone
        here.store.set(FAILED.format(rank()), sentence)


def reported(store: Any, numbers: Sequence[int]) -> dict[int, str]:
    """Return the reasons that ranks have reported, by rank."""
    sentences = {}
    with suppress(Exception):
        for number in numbers:
            if store.check([FAILED.format(number)]):
                sentences[number] = store.get(FAILED.format(number)).decode()
    return sentences


def sentence_to_print(error: UserError | Interrupted, sentence: str) -> str | None:
    """Report the error that ends this rank to the others, and return the sentence that this rank must print.

    Returns None if another rank or the launcher prints the error. If only this rank failed, the sentence names it.
    """
    if size() == 1:  # a single process, or the other ranks were not found
        return sentence if is_first_rank(os.environ) else f"rank {os.environ['RANK']}: {sentence}"
    if isinstance(error, Interrupted):
        if is_first():
            report(f"{STOPPED}{sentence}")
        return sentence if is_first() and SUPERVISED not in os.environ else None
    if isinstance(error, SharedError):
        return None
    is_lost = isinstance(error, LostRank)
    report(f"{LOST}{sentence}" if is_lost else sentence)
    if SUPERVISED in os.environ:
        return None
    if is_first():
        return sentence
    deadline = time.monotonic() + REPORT_WAIT
    while time.monotonic() < deadline:
        if is_lost or reported(here.store, [0]).get(0) == sentence:
            return None
        time.sleep(0.1)
    return f"rank {rank()}: {sentence}"
