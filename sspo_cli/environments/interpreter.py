"""The interpreter of one episode: a confined child of the fork server that runs cells.

Descriptors: 0 is /dev/null, 1 and 2 are the pipe for the output of programs, 3 is the socket for calls. A call consists of a
header and code. When the call is over, the interpreter writes back the token from the header. A program can forge the token,
but this only cuts its own observation short, because the process is stopped between calls.
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
HEADER = struct.Struct("=I8s?d")  # length of the code in bytes, token, is setup, seconds until the deadline
READY = bytes(8)  # written instead of a token when the process is confined
SETUP_FAILED = 98  # exit status


class CallLoop:
    """Runs calls one after another until the socket is closed."""

    def __init__(self) -> None:
        self._session = cells.Session()
        self._seconds = 0.0
        self._running = False

    def serve(self, seed: int) -> None:
        """Seed the random-number generators, then run calls until the socket is closed."""
        _seed(seed)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        signal.signal(signal.SIGINT, self._interrupt)
        os.write(CALLS, READY)
        while header := _read(HEADER.size):
            length, token, is_setup, self._seconds = HEADER.unpack(header)
            code = _read(length).decode()
            # One stream for both keeps the output in order. It is line-buffered, because a kill loses the buffer's content.
            sys.stdout = sys.stderr = output = _standard_output()
            if is_setup:
                self._set_up(code)
            else:
                self._run(code)
            with contextlib.suppress(ValueError, OSError):  # the program may have closed the stream
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
        except BaseException as error:  # the deadline passed while the session formatted an error, or memory ran out
            self._running = False
            os.write(1, f"{type(error).__name__}: {error}\n".encode(errors="replace"))

    def _interrupt(self, number: int, frame: types.FrameType | None) -> None:
        """Interrupt the running cell at its deadline; do nothing if it has just ended."""
        if self._running:
            self._running = False
            raise cells.TimeoutError(f"Timed out after {self._seconds:g} seconds.") from None


def _standard_output() -> io.TextIOWrapper:
    """Open a new stream to descriptor 1, because programs may have changed or closed earlier ones."""
    return io.TextIOWrapper(
        io.FileIO(1, "w", closefd=False), encoding="utf-8", errors="backslashreplace", line_buffering=True
    )


def _seed(seed: int) -> None:
    random.seed(seed)
    import numpy  # imported by the server before the fork

    numpy.random.seed(seed % (1 << 32))


def _read(length: int) -> bytes:
    """Read exactly `length` bytes from the call socket, or fewer if it is closed."""
    data = b""
    while len(data) < length and (more := os.read(CALLS, length - len(data))):
        data += more
    return data
