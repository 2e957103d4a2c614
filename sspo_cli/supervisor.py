"""Starts the ranks of `--nproc` on this machine, passes signals on to them, and explains their end in one sentence."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from sspo_cli.errors import UserError
from sspo_cli.interruption import Interrupted
from sspo_cli.launchers import SUPERVISED, ending_with_parent

INTERRUPTED = 130  # the exit code
POLL = 0.1  # seconds
# Seconds after the first failure until the other ranks, which mostly notice it at once, are asked to end, and then killed.
ASK_AFTER, KILL_AFTER = 5.0, 12.0
SAVING = 600.0  # seconds that ranks may take to end after another one was interrupted


def run_ranks(command: Sequence[str], count: int) -> None:
    """Run the command as `count` ranks until all have ended.

    Raises UserError with one sentence on which rank failed and why, and Interrupted when stopped.
    """
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        with _forwarding_signals(processes) as forwarded:
            for rank in range(count):
                processes.append(_start(command, rank, count, store.port))
            killed = _wait(processes, store)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
    _explain([process.returncode for process in processes], killed, forwarded, store)


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
    environment.setdefault(
        "TORCH_CPP_LOG_LEVEL", "ERROR"
    )  # avoids torch's stack trace if this process, which has the store, is killed
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


def _wait(processes: Sequence[subprocess.Popen[bytes]], store: Any) -> list[int]:
    """Wait until all have ended. After the first failure, the others are ended too; returns those that had to be killed."""
    from sspo_cli.ranks import FAILED

    failed_at: float | None = None
    interrupted_at: float | None = None
    asked, killed = False, list[int]()
    reported: set[int] = set()
    while any(process.poll() is None for process in processes):
        time.sleep(POLL)
        now = time.monotonic()
        for rank, process in enumerate(processes):
            code = process.poll()
            if code is None or rank in reported:
                continue
            reported.add(rank)
            if code == INTERRUPTED:
                interrupted_at = interrupted_at or now
            elif code:
                failed_at = failed_at or now
            if code < 0 and rank not in killed:  # so that the first rank's status can name it
                store.set(FAILED.format(rank), _describe(code))
        deadlines = [failed_at + KILL_AFTER] if failed_at else []
        deadlines += [interrupted_at + SAVING] if interrupted_at else []
        alive = [rank for rank, process in enumerate(processes) if process.poll() is None]
        if failed_at and now > failed_at + ASK_AFTER and not asked:
            asked = True
            for rank in alive:
                processes[rank].terminate()
        if deadlines and now > min(deadlines):
            for rank in alive:
                processes[rank].kill()
            killed += [rank for rank in alive if rank not in killed]
    return killed


def _describe(code: int) -> str:
    name = signal.Signals(-code).name
    why = ", as the system does when the memory is full" if -code == signal.SIGKILL else ""
    return f"it was ended by {name}{why}"


def _explain(codes: Sequence[int], killed: Sequence[int], forwarded: Sequence[int], store: Any) -> None:
    """Raise what the exit codes and reports of the ranks mean; return if all have done their work."""
    from sspo_cli.ranks import LOST, STOPPED, reported

    if not any(codes):
        return
    sentences = reported(store, range(len(codes)))
    stopped = [sentences.pop(rank) for rank in list(sentences) if sentences[rank].startswith(STOPPED)]
    if all(code in (0, INTERRUPTED) or -code in forwarded for code in codes):
        raise Interrupted(*(text.removeprefix(STOPPED) for text in stopped))
    own = {rank: text.removeprefix(LOST) for rank, text in sentences.items() if not text.startswith(LOST)}
    lost = [text.removeprefix(LOST) for text in sentences.values() if text.startswith(LOST)]
    died = [rank for rank in own if codes[rank] < 0]
    if len(own) == len(codes) and len(set(own.values())) == 1 and not died:
        raise UserError(next(iter(own.values())))
    if lost and (died or not own):
        raise UserError(lost[0])  # the first rank's, which names the run too
    if own:
        rank = (died or sorted(own))[0]
        of_rank = "" if rank == 0 and not died else f"rank {rank}: "
        remedy = "; --resume continues the run from its last checkpoint" if died else ""
        raise UserError(f"{of_rank}{own[rank]}{remedy}")
    failed = [rank for rank, code in enumerate(codes) if code not in (0, INTERRUPTED)]
    rank = next((rank for rank in failed if rank not in killed), failed[0])
    raise UserError(f"rank {rank} failed (exit code {codes[rank]}); see its output above")
