"""The trainer's side of a call: sending code to an interpreter, reading the output, and determining how the call ended.

The output of programs is never parsed. How a call ended is determined from the clock, the wait status and the budgets. A
program may forge the token that ends a call, but this only cuts its own observation short.
"""

import contextlib
import os
import secrets
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from sspo_cli.environments import messages
from sspo_cli.environments.interpreter import HEADER, READY, SETUP_FAILED
from sspo_cli.environments.result import Result
from sspo_cli.environments.server_link import ServerLink

STARTING = 60.0  # maximum time in seconds until an interpreter is confined
SETTING_UP = 60.0  # maximum time in seconds of a problem's setup
GRACE = 1.0  # seconds between a deadline and the kill
ENDING = 30.0  # maximum time in seconds until a killed process has ended
MOST_OUTPUT = 8 << 20  # bytes of output at which a call is ended
GONE = "the interpreter was ended and its variables are gone"


class SandboxFailure(Exception):
    """The sandbox itself failed, not the program; the call has no result."""


class SetupFailed(Exception):
    """The setup of `interpreter` raised an exception or did not end; the message says which."""

    def __init__(self, interpreter: "Interpreter", message: str) -> None:
        super().__init__(message)
        self.interpreter = interpreter


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """Limits of the sandbox.

    call_timeout  seconds of wall time of a call; the program is then interrupted, and if it stops, its variables are kept
    memory_mib    memory of one interpreter, in addition to the memory that all interpreters share
    output_chars  most characters of the output of a call
    parallel      interpreters that run at the same time; None: the number of cores that this process may use
    total_mib     memory of all live interpreters together; None: half of the memory available at the start
    """

    call_timeout: float = 30.0
    memory_mib: int = 512
    output_chars: int = 2000
    parallel: int | None = None
    total_mib: int | None = None


@dataclass(slots=True)
class Process:
    """The live process of an interpreter. The trainer holds its sockets; `process_id` is 0 until the server reports it."""

    number: int
    calls: socket.socket
    output: int
    process_id: int = 0

    def close(self) -> None:
        self.calls.close()
        with contextlib.suppress(OSError):
            os.close(self.output)


@dataclass(slots=True, eq=False)
class Interpreter:
    """The Python session of one episode; its process starts with the first call.

    setup  code that prepares variables, not counted as a cell
    cells  cells that have run; they run again if the process is lost for a reason other than the program
    note   message that the previous process ended; it is added to the next observation
    """

    setup: str | None
    seed: int
    cells: list[str] = field(default_factory=list)
    process: Process | None = None
    note: str | None = None

    def forget(self) -> None:
        """Close the descriptors of a process that has ended."""
        if self.process:
            self.process.close()
            self.process = None


class Call:
    """Runs one call by handling events of its interpreter. `result` is set when the call is over."""

    def __init__(
        self,
        interpreter: Interpreter,
        code: str,
        limits: SandboxLimits,
        server: ServerLink,
        next_number: Callable[[], int],
    ) -> None:
        self.interpreter = interpreter
        self.result: Result | None = None
        self.deadline = 0.0  # next time at which `check_deadline` acts
        self._ending: str | None = None  # the reason for ending the process, if it is being ended
        self._interrupted = self._killed = False
        self._code, self._limits, self._server, self._next_number = code, limits, server, next_number
        self._note, interpreter.note = interpreter.note, None
        if interpreter.process is None:
            self._start_process()
        else:
            self._server.order(messages.RESUME, interpreter.process.number)
            self._pending = deque([(code, False)])
            self._calls_closed = self._output_closed = False
            self._send_next()

    @property
    def process(self) -> Process:
        assert self.interpreter.process
        return self.interpreter.process

    def register(self, selector: selectors.BaseSelector) -> None:
        """Register the descriptors on which events are expected next."""
        if not self._calls_closed:
            waits = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
            selector.register(self.process.calls, waits, self)
        if not self._output_closed:
            selector.register(self.process.output, selectors.EVENT_READ, self)

    def handle(self, descriptor: int, events: int) -> None:
        """Handle a descriptor that is ready."""
        if descriptor == self.process.output:
            self._read_output()
        else:
            if events & selectors.EVENT_WRITE:
                self._send_more()
            if events & selectors.EVENT_READ:
                self._read_token()

    def check_deadline(self, now: float) -> None:
        """Interrupt a program at its deadline, and kill its process `GRACE` seconds later.

        Raises SandboxFailure if a killed process does not end.
        """
        if now < self.deadline:
            return
        if self._killed:
            raise SandboxFailure("an interpreter was killed and did not end")
        if self._ending or self._token == READY:
            self.kill(self._ending or "start")
        elif self._interrupted or self._is_setup:
            self.kill("timeout")
        else:
            self._interrupted = True
            self.deadline = now + GRACE
            self._server.order(messages.INTERRUPT, self.process.number)

    def kill(self, reason: str) -> None:
        """Kill the process; the call is over when its wait status arrives."""
        self._ending, self._killed = self._ending or reason, True
        self.deadline = time.monotonic() + ENDING
        self._server.order(messages.KILL, self.process.number)

    def process_ended(self, wait_status: int) -> None:
        """Handle the end of the process.

        Raises SandboxFailure if the process was not confined, and SetupFailed if it ended during the setup.
        """
        self._read_output()
        self.interpreter.forget()
        if self._token == READY:
            raise SandboxFailure(f"an interpreter could not be confined: {self._text() or wait_status}")
        if self._is_setup:
            failed = os.WIFEXITED(wait_status) and os.WEXITSTATUS(wait_status) == SETUP_FAILED
            raise SetupFailed(self.interpreter, self._text() if failed else self._reason(wait_status)[1])
        status, said = self._reason(wait_status)
        self.interpreter.cells.clear()
        if self._pending:  # it ended while an earlier cell ran again; the cell of this call still has to run
            self._note = said
            self._start_process()
        else:
            self.result = Result(self._with_notes(self._text(), said), status, self._seconds(), variables_lost=True)

    def _start_process(self) -> None:
        try:
            calls, theirs = socket.socketpair()
            output, written = os.pipe()
        except OSError as error:
            raise SandboxFailure(
                f"no interpreter could be opened: {error.strerror}; `ulimit -n` may be too low"
            ) from None
        for descriptor in (calls.fileno(), output):
            os.set_blocking(descriptor, False)
        self.interpreter.process = Process(self._next_number(), calls, output)
        try:
            self._server.open(self.process.number, self.interpreter.seed, theirs, written)
        finally:
            theirs.close()
            os.close(written)
        setup = [(self.interpreter.setup, True)] if self.interpreter.setup else []
        self._pending = deque([*setup, *((cell, False) for cell in (*self.interpreter.cells, self._code))])
        self._calls_closed = self._output_closed = False
        self._begin(READY, b"", STARTING)

    def _begin(self, token: bytes, message: bytes, seconds: float, is_setup: bool = False) -> None:
        self._token, self._tokens, self._unsent, self._is_setup = token, b"", message, is_setup
        self._said, self._amount = b"", 0
        self._ending, self._interrupted, self._killed = None, False, False
        self._started = time.monotonic()
        self.deadline = self._started + seconds

    def _send_next(self) -> None:
        code, is_setup = self._pending.popleft()
        token, data = secrets.token_bytes(len(READY)), code.encode(errors="replace")
        limit = SETTING_UP if is_setup else self._limits.call_timeout
        self._begin(token, HEADER.pack(len(data), token, is_setup, limit) + data, limit, is_setup)
        self._send_more()

    def _send_more(self) -> None:
        with contextlib.suppress(
            BlockingIOError, BrokenPipeError, ConnectionResetError
        ):  # handled at the end of its output
            self._unsent = self._unsent[self.process.calls.send(self._unsent) :]

    def _read_output(self) -> None:
        """Read the available output; if the process is being ended, read at most 64 KiB."""
        while not self._output_closed:
            try:
                data = os.read(self.process.output, 1 << 16)
            except BlockingIOError:
                return
            self._output_closed = not data
            self._said += data[: max(0, 4 * self._limits.output_chars + 4 - len(self._said))]
            self._count(len(data))
            if self._ending:
                return

    def _read_token(self) -> None:
        try:
            data = self.process.calls.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:  # the socket is closed: the process has ended, or is about to
            self._calls_closed = True
            self._unsent = b""
            if not self._ending:
                self._ending = "closed"
                self.deadline = time.monotonic() + GRACE
            return
        self._count(len(data))
        self._tokens = self._tokens[-len(READY) :] + data
        if not self._ending and self._tokens.endswith(self._token):
            self._read_output()
            if not self._ending:
                self._step_done()

    def _step_done(self) -> None:
        """Handle the token with which the process reports that it is confined, has run the setup, or has run a cell."""
        if self._pending:
            self._send_next()
            return
        self._server.order(messages.PAUSE, self.process.number)  # no code of an episode runs between its calls
        self.interpreter.cells.append(self._code)
        status = "timeout" if self._interrupted else "ok"
        self.result = Result(self._with_notes(self._text()), status, self._seconds())

    def _count(self, amount: int) -> None:
        self._amount += amount
        if self._amount > MOST_OUTPUT and not self._ending:
            self.kill("output")

    def _reason(self, wait_status: int) -> tuple[str, str]:
        """Return the status of a call whose process ended, and the sentence that reports this end in the observation."""
        limit = f"{self._limits.call_timeout:g}"
        ending = self._ending
        by_signal = os.WTERMSIG(wait_status) if os.WIFSIGNALED(wait_status) else None
        if ending == "timeout" or by_signal == signal.SIGXCPU:
            return "timeout", f"Timed out after {limit} seconds and did not stop: {GONE}."
        if ending == "memory" or (by_signal == signal.SIGKILL and not ending):  # killed by the kernel, out of memory
            return "memory", f"Out of memory: {GONE}."
        if ending == "output":
            return "crashed", f"More than {MOST_OUTPUT >> 20} MiB of output: {GONE}."
        how = f"signal {by_signal}" if by_signal else f"exit status {os.WEXITSTATUS(wait_status)}"
        return "crashed", f"The program ended its process ({how}): {GONE}."

    def _text(self) -> str:
        text = self._said.decode(errors="replace").rstrip()
        if len(text) > self._limits.output_chars:
            text = text[: self._limits.output_chars] + "...\n[Output Truncated]"
        return text

    def _with_notes(self, text: str, *notes: str) -> str:
        return "\n".join(filter(None, (self._note, text, *notes)))

    def _seconds(self) -> float:
        return time.monotonic() - self._started
