"""Signs of life in a log: a line is printed whenever nothing was printed for a while."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

SECONDS = 30.0


class Pulse:
    """A context manager with a thread that calls `say(describe())` whenever nothing was printed for `seconds`.

    The program must call `note_output` whenever it prints a line. An empty description is not printed.
    """

    def __init__(self, say: Callable[[str], None], describe: Callable[[], str], seconds: float = SECONDS) -> None:
        self._say, self._describe, self._seconds = say, describe, seconds
        self._last = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def note_output(self) -> None:
        """Record that a line was just printed."""
        self._last = time.monotonic()

    def _beat(self) -> None:
        while not self._ended.wait(max(0.01, self._last + self._seconds - time.monotonic())):
            if time.monotonic() - self._last >= self._seconds:
                self.note_output()
                if line := self._describe():
                    self._say(line)

    def __enter__(self) -> Self:
        self.note_output()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
