"""Detection of processes that hang: they neither answer nor compute nor read nor write.

A thread of each rank increments a counter in the store. The counter stops if the process is stopped, or if it is in a call that
blocks all of its threads. Such a call may be legitimate, for example if it writes a large file. Therefore the kernel's counts
of the main thread's processor time, reads and writes are compared, too. A rank in which only the main thread waits is not
detected, because it may legitimately wait for other ranks, for a server or for the check of an answer.
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

SILENCE = 30.0  # seconds until a process that does nothing has hung
LONGEST_POLL = 2.0  # seconds that count between two looks; the one who looks may have been stopped, too
EXCUSED = "DtZX"  # states of a process that waits for a disk or for a debugger, or has ended
STOPPED = "T"


class Watch:
    """Watches some of the processes of this machine, by rank."""

    def __init__(self, processes: Mapping[int, int]) -> None:
        """Start watching; `processes` maps each rank to its process id."""
        self.processes = dict(processes)
        self._silent = dict.fromkeys(processes, 0.0)
        self._before: dict[int, tuple[int, Sequence[int]]] = {}
        self._looked_at = time.monotonic()

    def forget(self, rank: int) -> None:
        """Stop watching a rank whose exit code was read, because another process may get its process id."""
        self.processes.pop(rank, None)

    def hung(self, beats: Mapping[int, int]) -> dict[int, str]:
        """Return {rank: reason} of the ranks that hang.

        beats  counter of each rank; 0 before the rank starts counting, negative after its end
        """
        now = time.monotonic()
        passed, self._looked_at = min(now - self._looked_at, LONGEST_POLL), now
        reasons = {}
        for rank, process in self.processes.items():
            activity = _activity(process)
            if activity is None:  # it has ended, or is not to be known on this system
                continue
            state, work = activity
            is_watched = beats[rank] >= 0 if state == STOPPED else beats[rank] > 0 and state not in EXCUSED
            is_silent = is_watched and self._before.get(rank) == (beats[rank], work)
            self._before[rank] = beats[rank], work
            self._silent[rank] = self._silent[rank] + passed if is_silent else 0.0
            if self._silent[rank] >= SILENCE:
                what = "it was stopped (SIGSTOP)" if state == STOPPED else "it hangs in a call"
                reasons[rank] = f"{what} and did nothing for {SILENCE:g} seconds"
        return reasons


def machine() -> str:
    """Return an identifier that is equal for two processes only if they share a process-id namespace; "" if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def has_ended(process: int) -> bool:
    """Report whether a process has ended, even if its parent has not asked for its exit code yet."""
    activity = _activity(process)
    return activity is None or activity[0] in "ZX"


def _activity(process: int) -> tuple[str, list[int]] | None:
    """Return a process's state, and its main thread's processor time, reads and writes; None if they are unknown.

    Other threads are ignored, because gloo's threads poll their sockets all the time.
    """
    thread = Path(f"/proc/{process}/task/{process}")
    try:
        fields = (thread / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    try:
        counted = (thread / "io").read_text(encoding="ascii").split()[1::2]
    except OSError:  # in some containers
        counted = []
    return fields[0], [int(number) for number in (*fields[11:13], *counted)]
