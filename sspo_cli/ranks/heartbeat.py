"""The heartbeat of a rank, by which a rank that hangs is found.

A thread of each rank counts up in the store. The supervisor watches all ranks that it has started. Without a supervisor, each
rank watches the next one on its machine.
"""

import atexit
import os
import signal
import threading
from contextlib import suppress
from datetime import timedelta
from typing import Any

from sspo_cli.launchers import SUPERVISED
from sspo_cli.ranks.keys import ALIVE, FAILED, PROCESS
from sspo_cli.ranks.liveness import Watch, has_ended, machine

HEARTBEAT = 1.0  # seconds
ANSWER = 3.0  # seconds in which the store must answer a heartbeat
ENDED = -(10**12)  # added to the heartbeats of a rank that needs none of the others any more


def start(store: Any, rank: int, size: int) -> None:
    """Start the thread that counts up in the store until the process ends."""
    store.set(PROCESS.format(rank), f"{os.getpid()} {machine()}")
    ended = threading.Event()
    own_store = store.clone()
    own_store.set_timeout(timedelta(seconds=ANSWER))
    heart = threading.Thread(target=_beat, args=(own_store, rank, size, ended), daemon=True)
    heart.start()
    atexit.register(_stop, heart, ended)


def end(store: Any, rank: int) -> None:
    """Let the ones who watch this rank know that it needs none of the others any more."""
    store.add(ALIVE.format(rank), ENDED)


def _beat(store: Any, rank: int, size: int, ended: threading.Event) -> None:
    """Count up in the store, and without a supervisor watch the next rank on this machine, which is killed if it hangs.

    The thread outlives a store that does not answer, because a rank that no longer counts is taken for one that hangs.
    """
    watch = None
    while not ended.is_set():
        try:
            store.add(ALIVE.format(rank), 1)
            watch = watch or Watch({} if SUPERVISED in os.environ else _next_here(store, rank, size))
            end_hung(watch, store)
        except Exception:  # of the store or of its sockets
            with suppress(Exception):  # it does not answer yet, or the launcher is gone
                store = store.clone()  # connects again
        ended.wait(HEARTBEAT)


def _stop(heart: threading.Thread, ended: threading.Event) -> None:
    """End the thread before the interpreter does, which would abort the process if it was in a call of the store."""
    ended.set()
    heart.join(timeout=4 * ANSWER)  # it may be connecting again, which takes longer than an answer


def end_hung(watch: Watch, store: Any) -> list[int]:
    """Kill the watched ranks that have hung, which the others notice at once, and report why; return them."""
    reasons = watch.hung({rank: store.add(ALIVE.format(rank), 0) for rank in watch.processes})
    for rank, reason in reasons.items():
        store.set(FAILED.format(rank), reason)
        with suppress(ProcessLookupError):
            os.kill(watch.processes[rank], signal.SIGKILL)
    return list(reasons)


def rank_has_ended(store: Any, number: int) -> bool:
    """Report whether a rank is on this machine and has ended; False if that cannot be known."""
    process = _process_here(store, number)
    return process is not None and has_ended(process)


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
