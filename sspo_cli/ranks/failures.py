"""Reports of the failures of ranks: which rank failed and why, printed once, in one sentence."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch.distributed as dist

from sspo_cli.errors import UserError, first_line
from sspo_cli.interruption import Interrupted
from sspo_cli.launchers import SUPERVISED, is_first_rank
from sspo_cli.ranks.exchange import SharedError
from sspo_cli.ranks.heartbeat import rank_has_ended
from sspo_cli.ranks.joining import PATIENCE, patience
from sspo_cli.ranks.keys import DIED, LOST, NOTICED, STOPPED
from sspo_cli.ranks.place import here, rank, size
from sspo_cli.ranks.reports import EchoedError, LostRank, connect, first_cause, report, reported

REPORT_WAIT = 3.0  # seconds until a rank that fails, or notices a failure, has surely reported it
# Phrases in torch's errors about a peer that has ended or does not answer; most of them are plain RuntimeErrors.
LOSS_PHRASES = ("gloo", "connection closed by peer", "connection reset", "timed out", "timeout", "nccl", "broken pipe")


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
        _outlast_sigterm()
        with suppress(Exception):  # the launcher is gone
            here.store.set(NOTICED.format(rank()), "")
        raise _lost_rank(error, remedy) from error


def says_lost(error: BaseException) -> bool:
    """Report whether an exception of torch means that another rank has ended or does not answer."""
    if size() == 1 or isinstance(error, UserError | KeyboardInterrupt | SystemExit):
        return False
    if isinstance(error, dist.DistError) or type(error).__name__ == "CheckpointException":
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in LOSS_PHRASES)


def _lost_rank(error: BaseException, remedy: str) -> LostRank:
    """Return an error that names the lost rank and why: as it reported, or the only rank that has not noticed a failure."""
    others = [number for number in range(size()) if number != rank()]
    deadline = time.monotonic() + REPORT_WAIT
    while time.monotonic() < deadline:
        with suppress(Exception):  # the launcher is gone, and the store with it
            if cause := first_cause(here.store, others, remedy):
                return cause
        time.sleep(0.1)
    with suppress(Exception):
        late = [number for number in others if not here.store.check([NOTICED.format(number)])]
        if gone := [number for number in late if rank_has_ended(here.store, number)]:
            why = "it was killed, or it crashed; see its output above"
            return LostRank(f"rank {gone[0]} has ended without a report: {why}; {remedy}")
        if late and any(word in str(error).lower() for word in ("timed out", "timeout")):
            names = " and ".join(f"rank {number}" for number in late)
            why = f"{patience():g} seconds ({PATIENCE}): it hangs, or its work takes longer"
            return LostRank(f"{names} did not answer for {why}; {remedy}")
    why = f"did not answer for {patience():g} seconds ({first_line(error)[:200]})"
    return LostRank(f"another rank has ended, or {why}; {remedy}")


def _outlast_sigterm() -> None:
    """Ignore the SIGTERM of torchrun after the first rank has failed: this rank ends anyway, once it has printed why."""
    if SUPERVISED not in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def report_bug(error: BaseException) -> bool:
    """Report an unexpected exception, which ends this rank. Return False if a lower rank prints the same traceback."""
    sentence = f"{DIED}it failed with {type(error).__name__}: {first_line(error)[:200]}; see its output above"
    _outlast_sigterm()
    report(sentence)
    return not _wait_for_lower(sentence)


def sentence_to_print(error: UserError | Interrupted, sentence: str) -> str | None:
    """Report the error that ends this rank to the others, and return the sentence that this rank must print.

    Returns None if another rank or the launcher prints the error. If only this rank failed, the sentence names it.
    """
    number, is_first, is_supervised = os.environ["RANK"], is_first_rank(os.environ), SUPERVISED in os.environ
    if isinstance(error, Interrupted):
        if is_first:
            report(f"{STOPPED}{sentence}")
        return sentence if is_first and not is_supervised else None
    _outlast_sigterm()
    if not isinstance(error, SharedError):
        report(f"{LOST}{sentence}" if isinstance(error, LostRank) else sentence)
    if is_supervised or isinstance(error, EchoedError):
        return None
    if isinstance(error, SharedError):
        _wait_for_lower(sentence)  # before the first rank has printed it, torchrun must not notice the end of this rank
        return None
    if isinstance(error, LostRank):
        return None if _wait_for_lower(LOST) else sentence
    return None if _wait_for_lower(sentence) else sentence if is_first else f"rank {number}: {sentence}"


def _wait_for_lower(beginning: str) -> bool:
    """Wait until a rank with a lower number has reported a sentence that begins so; return False if none does so soon."""
    lower = range(int(os.environ["RANK"]))
    deadline = time.monotonic() + REPORT_WAIT
    while lower and time.monotonic() < deadline:
        with suppress(Exception):  # the launcher is gone
            if any(text.startswith(beginning) for text in reported(connect(REPORT_WAIT), lower).values()):
                return True
        time.sleep(0.1)
    return False
