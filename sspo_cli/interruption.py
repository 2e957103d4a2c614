"""Ctrl-C, SIGTERM and a closed terminal end long work at the next safe point, where its state can be saved."""

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Self


class Interrupted(Exception):
    """The work stopped because it was asked to; its state is saved and it can be resumed."""

    def __init__(self, message: str = "stopped; the state is saved, and --resume goes on from it") -> None:
        super().__init__(message)


class Interruption:
    """Context manager: the first signal sets `requested`; a second one ends the process the usual way.

    SIGHUP is left alone where it was ignored at the start, as by `nohup`. A second SIGHUP does nothing: a terminal that
    closes may send two.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Self:
        hears_hangup = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
        signals = [number for number in self.SIGNALS if number != signal.SIGHUP or hears_hangup]
        self._previous = {number: signal.signal(number, self._request) for number in signals}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore(self._previous)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested = True
            self._restore({signal.SIGINT, signal.SIGTERM})
            with suppress(OSError):  # the terminal may be closed; print is not safe here
                os.write(2, b"\nsspo: stopping at the next safe point; once more to end at once\n")

    def _restore(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            signal.signal(number, self._previous[signal.Signals(number)])
