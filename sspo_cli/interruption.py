"""Handling of Ctrl-C, SIGTERM and a closed terminal: work stops at the next safe point, where its state can be saved."""

import os
import signal
import time
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Self

SECONDS_TOGETHER = 1.0  # signals within this time are one request, sent to a process and to its group


class Interrupted(Exception):
    """Raised when work stops on request, with its state saved, so that it can be resumed."""

    def __init__(self, message: str = "stopped; the state is saved") -> None:
        super().__init__(message)


class Interruption:
    """A context manager in which the first signal sets `requested`, and a later Ctrl-C ends the process at once.

    SIGTERM and SIGHUP may come several times: batch systems, sweeps and closing terminals send them to a process and to its
    group at any time while it saves its state, and use SIGKILL on processes that do not stop. A Ctrl-C (SIGINT) more than
    SECONDS_TOGETHER after the first signal has its default effect. SIGHUP stays ignored if it was ignored at the start, as by
    `nohup`.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self, speaks: bool = True) -> None:
        """Create an interruption. If `speaks` is true, it acknowledges the first signal on standard error."""
        self.requested = False
        self._speaks = speaks
        self._requested_at = 0.0

    def __enter__(self) -> Self:
        hears_hangup = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
        signals = [number for number in self.SIGNALS if number != signal.SIGHUP or hears_hangup]
        self._previous = {number: signal.signal(number, self._request) for number in signals}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested, self._requested_at = True, time.monotonic()
            if not self._speaks:
                return
            with suppress(OSError):  # the terminal may be closed; print is not safe in a signal handler
                os.write(2, b"\nsspo: stopping at the next safe point; press Ctrl-C again to end without saving\n")
        elif number == signal.SIGINT and time.monotonic() - self._requested_at > SECONDS_TOGETHER:
            signal.signal(signal.SIGINT, self._previous[signal.SIGINT])
            signal.raise_signal(signal.SIGINT)
