"""Signs of life for those who read a log: a line whenever nothing was said for a while."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

SECONDS = 30.0


class Pulse:
    """Context manager: says `describe()` whenever `seconds` have passed without a line, from a thread of its own.

    `heard` is called with each line that is said otherwise. A description that is empty is not said.
    """

    def __init__(self, say: Callable[[str], None], describe: Callable[[], str], seconds: float = SECONDS) -> None:
        self._say, self._describe, self._seconds = say, describe, seconds
        self._last = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def heard(self) -> None:
        """Note that a line was said just now."""
        self._last = time.monotonic()

    def _beat(self) -> None:
        while not self._ended.wait(max(0.01, self._last + self._seconds - time.monotonic())):
            if time.monotonic() - self._last >= self._seconds:
                self.heard()
                if line := self._describe():
                    self._say(line)

    def __enter__(self) -> Self:
        self.heard()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
