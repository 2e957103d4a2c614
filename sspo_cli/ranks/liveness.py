"""Detection of processes that hang: they neither answer nor compute nor read nor write.

A thread of each rank counts up in the store. A process that is stopped does not count, nor one that is stuck in a call that lets
none of its threads run. A long call of that kind may be legal, such as the writing of a large file, so what the kernel has
counted of the main thread is looked at, too. A rank whose main thread alone waits is not found here: it may wait legally, for
other ranks, for a server or for a check of an answer.
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
        """Begin to watch; `processes` has the process of each rank."""
        self.processes = dict(processes)
        self._silent = dict.fromkeys(processes, 0.0)
        self._before: dict[int, tuple[int, Sequence[int]]] = {}
        self._looked_at = time.monotonic()

    def forget(self, rank: int) -> None:
        """Watch a rank no more, because its exit code was taken, so that another process may get its number."""
        self.processes.pop(rank, None)

    def hung(self, beats: Mapping[int, int]) -> dict[int, str]:
        """Return why ranks have hung; `beats` has what each has counted, 0 before it begins and less when it has ended."""
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
    """Return what only processes that see one another's numbers have in common."""
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
    """Return the state of a process, and what its main thread has computed, read and written; None if that cannot be known.

    The other threads do not count: those of gloo look at their sockets all the time.
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
