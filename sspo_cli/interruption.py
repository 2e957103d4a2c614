"""Ctrl-C and SIGTERM end long work at the next safe point, where its state can be saved."""

import os
import signal
from types import FrameType, TracebackType
from typing import Self


class Interrupted(Exception):
    """The work stopped because it was asked to; its state is saved and it can be resumed."""

    def __init__(self, message: str = "stopped; the state is saved, and --resume goes on from it") -> None:
        super().__init__(message)


class Interruption:
    """Context manager: the first signal sets `requested`; a second one ends the process the usual way."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._request) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()
        os.write(2, b"\nsspo: stopping at the next safe point; once more to end at once\n")  # print is not safe here

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
