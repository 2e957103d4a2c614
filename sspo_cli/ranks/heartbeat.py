"""The heartbeat of a rank, which reveals whether the rank hangs.

A thread of each rank increments a counter in the store. The supervisor watches all ranks that it has started. Without a
supervisor, each rank watches the next rank on its machine.
"""

import atexit
import os
import signal
import threading
from contextlib import suppress
from datetime import timedelta
from typing import Any

from sspo_cli.launchers import SUPERVISED
from sspo_cli.ranks.keys import ALIVE, DIED, FAILED
from sspo_cli.ranks.liveness import Watch, has_ended
from sspo_cli.ranks.reports import process_here

HEARTBEAT = 1.0  # seconds
ANSWER = 3.0  # seconds in which the store must answer a heartbeat
ENDED = -(10**12)  # added to the heartbeats of a rank that needs none of the others any more


def start(store: Any, rank: int, size: int) -> None:
    """Start the thread that increments this rank's counter in the store until the process ends."""
    ended = threading.Event()
    own_store = store.clone()
    own_store.set_timeout(timedelta(seconds=ANSWER))
    heart = threading.Thread(target=_beat, args=(own_store, rank, size, ended), daemon=True)
    heart.start()
    atexit.register(_stop, heart, ended)


def end(store: Any, rank: int) -> None:
    """Report to the watchers of this rank that it no longer needs any other rank."""
    store.add(ALIVE.format(rank), ENDED)


def _beat(store: Any, rank: int, size: int, ended: threading.Event) -> None:
    """Increment the counter in the store. Without a supervisor, also watch the next rank on this machine; kill it if it hangs.

    The thread continues if the store does not answer, because a rank whose counter stops is assumed to hang.
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
    """Stop the heartbeat thread before the interpreter exits.

    If the interpreter exits while the thread is calling the store, the process aborts.
    """
    ended.set()
    heart.join(timeout=4 * ANSWER)  # it may be connecting again, which takes longer than an answer


def end_hung(watch: Watch, store: Any) -> list[int]:
    """Kill the watched ranks that hang, report the reason, and return these ranks. The other ranks notice the end at once."""
    reasons = watch.hung({rank: store.add(ALIVE.format(rank), 0) for rank in watch.processes})
    for rank, reason in reasons.items():
        store.set(FAILED.format(rank), f"{DIED}{reason}")
        with suppress(ProcessLookupError):
            os.kill(watch.processes[rank], signal.SIGKILL)
    return list(reasons)


def rank_has_ended(store: Any, number: int) -> bool:
    """Return True if a rank is on this machine and has ended; False if this is unknown."""
    process = process_here(store, number)
    return process is not None and has_ended(process)


def _next_here(store: Any, rank: int, size: int) -> dict[int, int]:
    """Return {rank: process} of the next rank on this machine (after the last, the first), or {} if there is no other rank."""
    for other in ((rank + step) % size for step in range(1, size)):
        if process := process_here(store, other):
            return {other: process}
    return {}
