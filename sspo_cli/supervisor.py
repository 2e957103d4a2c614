"""Start of the ranks of `--nproc` on this machine, forwarding of signals to the ranks, and explanation of how they ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from sspo_cli.errors import UserError
from sspo_cli.interruption import Interrupted
from sspo_cli.launchers import SUPERVISED, ending_with_parent

INTERRUPTED = 130  # the exit code
POLL, WATCH = 0.1, 1.0  # seconds between two looks whether ranks have ended, and whether one hangs
# Seconds after the first failure until the other ranks, which mostly notice it at once, are asked to end, and then killed.
ASK_AFTER, KILL_AFTER = 5.0, 12.0
SAVING = 600.0  # seconds that ranks may take to end after another one was interrupted


class FailedRanks(UserError):
    """Raised if a rank failed. The message states which rank failed and why.

    folder      folder of the run, or None if the first rank has not opened one
    first_code  exit code of the first rank
    """

    def __init__(self, message: str, folder: Path | None, first_code: int) -> None:
        super().__init__(message)
        self.folder, self.first_code = folder, first_code


@dataclass(frozen=True, slots=True)
class Ends:
    """Sentences about the end of a command that its ranks cannot print themselves.

    killed   remedy, which is added to the message that a rank was killed
    stopped  message if a signal ended the ranks before they could report what is saved
    """

    killed: str
    stopped: str


OF_TRAINING = Ends(
    "--resume continues the run from its last checkpoint, if it has one",
    "stopped before the run could be saved; --resume continues it from its last checkpoint, if it has one",
)


def run_ranks(command: Sequence[str], count: int, ends: Ends = OF_TRAINING) -> None:
    """Run the command as `count` ranks until all have ended.

    Raises FailedRanks if a rank fails, and Interrupted if the user stops the command.
    """
    from torch.distributed import TCPStore

    from sspo_cli.ranks.keys import FOLDER

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        with _forwarding_signals(processes) as forwarded:
            for rank in range(count):
                processes.append(_start(command, rank, count, store.port))
            ended = _wait(processes, store)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
    try:
        _explain([process.returncode for process in processes], ended, forwarded, store, ends)
    except UserError as error:
        folder = Path(store.get(FOLDER).decode()) if store.check([FOLDER]) else None
        raise FailedRanks(str(error), folder, processes[0].returncode) from None


def _start(command: Sequence[str], rank: int, count: int, port: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": str(True),  # the store is in this process
        SUPERVISED: "1",
    }
    # Avoids torch's stack trace if this process, which has the store, is killed.
    environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # for any address that the host name resolves to
    return subprocess.Popen(
        command,
        env=environment,
        stdin=None if rank == 0 else subprocess.DEVNULL,
        stdout=None if rank == 0 else subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C reaches the ranks through this process alone, once
        preexec_fn=ending_with_parent(),
    )


@contextmanager
def _forwarding_signals(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Pass signals on to the ranks; yield the list of signals that were passed on."""
    forwarded: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        forwarded.append(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        yield forwarded
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(processes: Sequence[subprocess.Popen[bytes]], store: Any) -> set[int]:
    """Wait until all ranks have ended. Return the ranks that this function ended after another rank failed or was interrupted."""
    from sspo_cli.ranks.heartbeat import end_hung
    from sspo_cli.ranks.keys import ALIVE, DIED, FAILED
    from sspo_cli.ranks.liveness import Watch

    watch, watched_at = Watch({rank: process.pid for rank, process in enumerate(processes)}), 0.0
    hung = set[int]()
    failed_at: float | None = None
    interrupted_at: float | None = None
    ended, reported = set[int](), set[int]()
    while any(process.poll() is None for process in processes):
        time.sleep(POLL)
        now = time.monotonic()
        for rank, process in enumerate(processes):
            code = process.poll()
            if code is None or rank in reported:
                continue
            reported.add(rank)
            watch.forget(rank)
            # So that the status of the run can name this rank, unless it crashed because another one has failed.
            if code < 0 and not failed_at and rank not in ended and not store.check([FAILED.format(rank)]):
                store.set(FAILED.format(rank), f"{DIED}{_describe(code)}")
            if code == INTERRUPTED:
                interrupted_at = interrupted_at or now
            elif code:
                failed_at = failed_at or now
        if now > watched_at + WATCH:  # after the ended ones are forgotten
            watched_at = now
            hung.update(end_hung(watch, store))
        deadlines = [failed_at + KILL_AFTER] if failed_at else []
        deadlines += [interrupted_at + SAVING] if interrupted_at else []
        alive = [rank for rank, process in enumerate(processes) if process.poll() is None]
        asked = list[int]()
        if failed_at and now > failed_at + ASK_AFTER:
            asked = alive
        elif interrupted_at and now > interrupted_at + ASK_AFTER:
            # A rank that waits in C++ to join the others handles no SIGINT, and has nothing to save.
            asked = [rank for rank in alive if not store.add(ALIVE.format(rank), 0)]
        for rank in asked:
            if rank not in ended:
                processes[rank].terminate()
        ended.update(asked)
        if deadlines and now > min(deadlines):
            for rank in alive:
                processes[rank].kill()
            ended.update(alive)
    return ended - hung


def _describe(code: int) -> str:
    name = signal.Signals(-code).name
    why = ", as the system does when the memory is full" if -code == signal.SIGKILL else ""
    return f"it was ended by {name}{why}"


def _explain(codes: Sequence[int], ended: Collection[int], forwarded: Sequence[int], store: Any, ends: Ends) -> None:
    """Raise the exception that the exit codes and reports of the ranks indicate. Return if all ranks have succeeded.

    ended  ranks that the supervisor has ended, whose exit codes say nothing
    """
    from sspo_cli.ranks.keys import DIED, LOST, STOPPED
    from sspo_cli.ranks.reports import reported

    if not any(codes):
        return
    sentences = reported(store, range(len(codes)))
    stopped = [sentences.pop(rank) for rank in list(sentences) if sentences[rank].startswith(STOPPED)]
    by_signal = [-code in forwarded or (code < 0 and rank in ended) for rank, code in enumerate(codes)]
    if all(code in (0, INTERRUPTED) or stopped_it for code, stopped_it in zip(codes, by_signal, strict=True)):
        raise Interrupted(stopped[0].removeprefix(STOPPED) if stopped else ends.stopped)
    lost = [text.removeprefix(LOST) for text in sentences.values() if text.startswith(LOST)]
    died = {rank: text.removeprefix(DIED) for rank, text in sentences.items() if text.startswith(DIED)}
    own = {rank: text for rank, text in sentences.items() if not text.startswith((LOST, DIED))}
    if own:
        rank, text = min(own.items())
        raise UserError(f"rank {rank}: {text}" if rank else text)
    if lost:
        raise UserError(lost[0])  # the first rank's, which names the run too
    if died:
        rank, text = min(died.items())
        raise UserError(f"rank {rank}: {text}; {ends.killed}")
    failed = [rank for rank, code in enumerate(codes) if code not in (0, INTERRUPTED)]
    rank = next((rank for rank in failed if rank not in ended), failed[0])
    raise UserError(f"rank {rank} failed (exit code {codes[rank]}); see its output above")
