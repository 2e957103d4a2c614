"""The ranks of a run: processes that share its work, each on another GPU. A process alone is a run's only rank.

Every rank holds the whole rollout batch and the same state of the run. Prompts, micro-batches, weights and moments are divided
among the ranks, and their results are combined before anything depends on them. Only the first rank writes the run's folder.

Functions that communicate must be called by all ranks, in the same order, on the main thread.
"""

import atexit
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from sspo_cli.errors import UserError, first_line
from sspo_cli.interruption import Interrupted
from sspo_cli.launchers import SUPERVISED, is_first_rank, is_rank
from sspo_cli.liveness import Watch, has_ended, machine

T = TypeVar("T")
P = ParamSpec("P")

PATIENCE = "SSPO_PATIENCE"  # environment variable: seconds that ranks wait for one another
DEFAULT_PATIENCE = 600.0
ALWAYS_ALLOWED = 4  # ranks that may always be started on a CPU, to try out several ranks
HEARTBEAT = 1.0  # seconds
REPORT_WAIT = 3.0  # seconds until a rank that fails, or notices a failure, has surely reported it
FAILED, ALIVE, NOTICED, PROCESS = (f"sspo/{name}/{{}}" for name in ("failed", "alive", "noticed", "process"))  # by rank
FOLDER = "sspo/folder"  # the run's, which the first rank writes
ENDED = -(10**12)  # added to the heartbeats of a rank that needs none of the others any more
# They begin the reports of a rank that has lost another one, and of one that was asked to stop.
LOST, STOPPED = "lost: ", "stopped: "
# Phrases in torch's errors about a peer that has ended or does not answer; most of them are plain RuntimeErrors.
LOSS_PHRASES = ("gloo", "connection closed by peer", "connection reset", "timed out", "timeout", "nccl", "broken pipe")


class SharedError(UserError):
    """A UserError that the first rank raises as well, and reports."""


class LostRank(UserError):
    """Raised if another rank has ended or does not answer."""


@dataclass
class _Process:
    """The place of a process among the ranks."""

    rank: int = 0
    size: int = 1
    store: Any = None  # where ranks and their launcher report failures
    alone: bool = field(default=False)  # inside of what the first rank does alone
    waited: float = 0.0  # seconds in exchanges since they were asked for


_process = _Process()


def start(device: str) -> None:
    """Join the other ranks if a launcher has started several (see `launchers`).

    Raises UserError if this machine has no GPU for this rank.
    """
    if not is_rank(os.environ) or dist.is_initialized():
        return
    local = int(os.environ["LOCAL_RANK"])
    check_start(int(os.environ.get("LOCAL_WORLD_SIZE", local + 1)), device)  # the same on each rank, so reported once
    on_gpus = device != "cpu" and torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(local)
    limit = timedelta(seconds=patience())
    store, rank, size = next(iter(rendezvous("env://", timeout=limit)))
    # gloo next to NCCL: objects and rows of a batch are exchanged on the CPU.
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    group_store = dist.PrefixStore(f"sspo/group-{size}", store)
    dist.init_process_group(backend, store=group_store, rank=rank, world_size=size, timeout=limit)
    _process.rank, _process.size, _process.store = rank, size, store
    store.set(PROCESS.format(rank), f"{os.getpid()} {machine()}")
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(store.clone(), rank, size, ended), daemon=True)
    heart.start()
    atexit.register(_stop_heart, heart, ended)


def patience() -> float:
    """Return how many seconds ranks wait for one another. Raises UserError if SSPO_PATIENCE is not a valid number."""
    value = os.environ.get(PATIENCE, str(DEFAULT_PATIENCE))
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 1.0 <= seconds <= 1e7:
        raise UserError(f"{PATIENCE} = {value} is not a number of seconds; use a number from 1 to 10,000,000")
    return seconds


def check_start(count: int, device: str) -> None:
    """Raise UserError if `count` ranks cannot be started on this machine.

    The machine has too few GPUs, or too few cores for ranks on its CPU; `device` is a single GPU; or SSPO_PATIENCE is invalid.
    """
    patience()
    if device == "cpu" or not torch.cuda.is_available():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if count > max(cores, ALWAYS_ALLOWED):
            raise UserError(
                f"{count} ranks are too many for the {cores} core{'s' * (cores > 1)} that this process may use; start at most "
                f"{max(cores, ALWAYS_ALLOWED)}"
            )
        return
    if device not in ("auto", "cuda"):
        raise UserError(f"device = {device} is a single GPU, but each rank needs its own; use cuda or auto")
    if (gpus := torch.cuda.device_count()) < count:
        raise UserError(f"{count} ranks need as many GPUs, and this machine has {gpus}; start at most {gpus}")


def _stop_heart(heart: threading.Thread, ended: threading.Event) -> None:
    """End the thread before the interpreter does, which would abort the process if it was in a call of the store."""
    ended.set()
    heart.join(timeout=5 * HEARTBEAT)


def _beat(store: Any, rank: int, size: int, ended: threading.Event) -> None:
    """Count up in the store, and without a supervisor watch the next rank on this machine, which is killed if it hangs."""
    with suppress(Exception):  # the launcher is gone
        watch = Watch({} if SUPERVISED in os.environ else _next_here(store, rank, size))
        while True:
            store.add(ALIVE.format(rank), 1)
            end_hung(watch, store)
            if ended.wait(HEARTBEAT):
                return


def _next_here(store: Any, rank: int, size: int) -> dict[int, int]:
    """Return the next rank on this machine, the first one after the last, and its process; nothing without one."""
    for other in ((rank + step) % size for step in range(1, size)):
        if process := _process_here(store, other):
            return {other: process}
    return {}


def _process_here(store: Any, number: int) -> int | None:
    """Return the process of a rank if it is on this machine."""
    process, _, where = store.get(PROCESS.format(number)).decode().partition(" ")
    return int(process) if where and where == machine() else None


def _has_ended(store: Any, number: int) -> bool:
    """Report whether a rank is on this machine and has ended; False if that cannot be known."""
    process = _process_here(store, number)
    return process is not None and has_ended(process)


def end_hung(watch: Watch, store: Any) -> list[int]:
    """Kill the watched ranks that have hung, which the others notice at once, and report why; return them."""
    reasons = watch.hung({rank: store.add(ALIVE.format(rank), 0) for rank in watch.processes})
    for rank, reason in reasons.items():
        store.set(FAILED.format(rank), reason)
        with suppress(ProcessLookupError):
            os.kill(watch.processes[rank], signal.SIGKILL)
    return list(reasons)


def announce_folder(path: Path) -> None:
    """Let the supervisor know the run's folder, in case that the first rank, which writes it, is killed."""
    if size() > 1:
        _process.store.set(FOLDER, str(path.absolute()))


@contextmanager
def supposing(count: int) -> Iterator[None]:
    """Let a single process check a run as one of `count` ranks would, without communication."""
    _process.size, _process.alone = count, True
    try:
        yield
    finally:
        _process.size, _process.alone = 1, False


def stop() -> None:
    """Leave the process group at the end of a run, once all ranks have reached it."""
    if _process.size > 1:
        dist.barrier()
        _process.store.add(ALIVE.format(_process.rank), ENDED)
        dist.destroy_process_group()
        _process.rank, _process.size, _process.store = 0, 1, None


def size() -> int:
    """Return the number of ranks."""
    return _process.size


def rank() -> int:
    """Return this rank's number, from 0."""
    return _process.rank


def is_first() -> bool:
    """Report whether this rank writes the run's folder; True if there is only one."""
    return _process.rank == 0


def share(count: int) -> slice:
    """Return this rank's slice of `count` items; the lengths of two ranks' slices differ by at most one."""
    return slice(count * rank() // size(), count * (rank() + 1) // size())


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


def add(*tensors: Tensor) -> None:
    """Sum CPU tensors over the ranks, in place. The sums are exact if all ranks except one have zeros."""
    if size() > 1:
        with _waiting():
            for tensor in tensors:
                dist.all_reduce(tensor)


def every(values: Sequence[float]) -> list[list[float]]:
    """Return the values of each rank, in the order of the ranks."""
    rows = torch.zeros(size(), len(values), dtype=torch.float64)
    rows[rank()] = torch.tensor(values, dtype=torch.float64)
    add(rows)
    return rows.tolist()


@contextmanager
def _waiting() -> Iterator[None]:
    began = time.perf_counter()
    yield
    _process.waited += time.perf_counter() - began


def waited() -> float:
    """Return the seconds that this rank has spent in exchanges since the last call."""
    seconds, _process.waited = _process.waited, 0.0
    return seconds


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


def on_first(work: Callable[[], T]) -> T:
    """Run `work` on the first rank; return its result on all ranks, or raise its UserError on all of them."""
    if size() == 1 or _process.alone:
        return work()
    outcome: list[tuple[str, Any]] = [("", None)]
    error: UserError | None = None
    if is_first():
        _process.alone = True
        try:
            outcome = [("", work())]
        except UserError as refused:
            error, outcome = refused, [(str(refused), None)]
        finally:
            _process.alone = False
    with _waiting():
        dist.broadcast_object_list(outcome, src=0)
    sentence, result = outcome[0]
    if sentence:
        raise error or SharedError(sentence)
    return result


def by_first(method: Callable[P, T]) -> Callable[P, T]:
    """Make a function run on the first rank only. All ranks must call it, and all get its result."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return on_first(lambda: method(*args, **kwargs))

    return call


@contextmanager
def explained_loss(remedy: str) -> Iterator[None]:
    """Turn torch's errors about another rank that has ended or does not answer into a LostRank that explains them.

    remedy  end of the message
    """
    try:
        yield
    except BaseException as error:  # torch's CheckpointException is not a subclass of Exception
        if not says_lost(error):
            raise
        with suppress(Exception):  # the launcher is gone
            _process.store.set(NOTICED.format(rank()), "")
        raise LostRank(f"{_why_lost(error)}; {remedy}") from error


def says_lost(error: BaseException) -> bool:
    """Report whether an exception of torch means that another rank has ended or does not answer."""
    if size() == 1 or isinstance(error, UserError | KeyboardInterrupt | SystemExit):
        return False
    if isinstance(error, dist.DistError) or type(error).__name__ == "CheckpointException":
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in LOSS_PHRASES)


def _why_lost(error: BaseException) -> str:
    """Return which rank is lost and why: by its own report or its launcher's, or because it alone notices no loss."""
    others = [number for number in range(size()) if number != rank()]
    deadline = time.monotonic() + REPORT_WAIT
    while time.monotonic() < deadline:
        for number, sentence in reported(_process.store, others).items():
            if not sentence.startswith((LOST, STOPPED)):
                return f"rank {number}: {sentence}"
        time.sleep(0.1)
    with suppress(Exception):  # the launcher is gone, and the store with it
        late = [number for number in others if not _process.store.check([NOTICED.format(number)])]
        if gone := [number for number in late if _has_ended(_process.store, number)]:
            return f"rank {gone[0]} has ended without a report: it was killed, or it crashed; see its output above"
        if late and any(word in str(error).lower() for word in ("timed out", "timeout")):
            names = " and ".join(f"rank {number}" for number in late)
            return f"{names} did not answer for {patience():g} seconds ({PATIENCE}): it hangs, or its work takes longer"
    return f"another rank has ended, or did not answer for {patience():g} seconds ({first_line(error)[:200]})"


def report(sentence: str) -> None:
    """Store the reason why this rank ends, for the other ranks and the launcher."""
    with suppress(Exception):  # it is gone
        _process.store.set(FAILED.format(rank()), sentence)


def reported(store: Any, numbers: Sequence[int]) -> dict[int, str]:
    """Return the reasons that ranks have reported, by rank."""
    sentences = {}
    with suppress(Exception):
        for number in numbers:
            if store.check([FAILED.format(number)]):
                sentences[number] = store.get(FAILED.format(number)).decode()
    return sentences


def words_of(error: UserError | Interrupted, sentence: str) -> str | None:
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
        if is_lost or reported(_process.store, [0]).get(0) == sentence:
            return None
        time.sleep(0.1)
    return f"rank {rank()}: {sentence}"
