"""One episode's interpreter: a confined child of the fork server that runs the cells it is sent.

Descriptors: 0 is /dev/null, 1 and 2 are one pipe for all that programs print, 3 is the socket that calls come through.
A call is a header and code; when it is over, its token is written back. A program can forge the token, which ends only
its own observation early: the process is stopped between calls.
"""

import contextlib
import io
import os
import random
import signal
import struct
import sys
import types

from sspo_cli.environments import cells

CALLS = 3  # descriptor
HEADER = struct.Struct("=I8s?d")  # bytes of code, token, whether it is the setup, seconds until the deadline
READY = bytes(8)  # written in the place of a token once the process is confined
SETUP_FAILED = 98  # exit status


class CallLoop:
    """Runs calls one after the other until the socket is closed."""

    def __init__(self) -> None:
        self._session = cells.Session()
        self._seconds = 0.0
        self._running = False

    def serve(self, seed: int) -> None:
        """Answer calls until the socket is closed."""
        _seed(seed)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        signal.signal(signal.SIGINT, self._interrupt)
        os.write(CALLS, READY)
        while header := _read(HEADER.size):
            length, token, is_setup, self._seconds = HEADER.unpack(header)
            code = _read(length).decode()
            # Both are one stream, so that output stays in order; each line is written at once, because a kill loses the rest.
            sys.stdout = sys.stderr = output = _standard_output()
            if is_setup:
                self._set_up(code)
            else:
                self._run(code)
            with contextlib.suppress(ValueError, OSError):  # the program may have closed it
                output.flush()
            os.write(CALLS, token)

    def _set_up(self, code: str) -> None:
        try:
            self._session.set_up(code)
        except BaseException as error:
            os.write(1, f"{type(error).__name__}: {error}".encode())
            os._exit(SETUP_FAILED)

    def _run(self, code: str) -> None:
        try:
            self._running = True
            self._session.run(code)
            self._running = False
        except BaseException as error:  # the deadline struck while the session described an error, or memory ran out
            self._running = False
            os.write(1, f"{type(error).__name__}: {error}\n".encode(errors="replace"))

    def _interrupt(self, number: int, frame: types.FrameType | None) -> None:
        """Interrupt the cell at its deadline; ignored if it has just ended."""
        if self._running:
            self._running = False
            raise cells.TimeoutError(f"Timed out after {self._seconds:g} seconds.") from None


def _standard_output() -> io.TextIOWrapper:
    """Open a stream to descriptor 1, whatever programs have done to earlier ones."""
    return io.TextIOWrapper(
        io.FileIO(1, "w", closefd=False), encoding="utf-8", errors="backslashreplace", line_buffering=True
    )


def _seed(seed: int) -> None:
    random.seed(seed)
    import numpy  # imported by the server before the fork

    numpy.random.seed(seed % (1 << 32))


def _read(length: int) -> bytes:
    """Exactly so many bytes of the call socket, or fewer where it is closed."""
    data = b""
    while len(data) < length and (more := os.read(CALLS, length - len(data))):
        data += more
    return data
