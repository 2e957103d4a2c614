"""Runs Python programs that nobody has read, many at once: text in, text out.

A trusted fork server (`fork_server`) forks one interpreter an episode; each confines itself (`confinement`) before it
sees any code. It can read Python's and the system's libraries and compute. It cannot make a process, a thread, a file,
a socket, a pipe or shared memory, send a signal, or read anything else. Between its calls it is stopped, so nothing
of an episode runs on. Programs therefore have no threads, subprocesses, files to write, pip, asyncio or network. The
names, sizes and times of files stay visible, their contents do not.

It runs on 64-bit Linux 5.13 or newer on x86_64 or aarch64 with Landlock enabled, as root or not, also in a container
whose profile allows Landlock, as Docker's does. It needs no root, namespaces, setuid programs or other packages.
Everywhere else, and if its self-test at the start finds anything that a program could do, it refuses to start; no option
runs code without it.
"""

import contextlib
import os
import selectors
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Self

from sspo_cli.environments import messages
from sspo_cli.environments.calls import GONE, Call, Interpreter, SandboxFailure, SandboxLimits, SetupFailed
from sspo_cli.environments.memory import available_bytes, private_bytes
from sspo_cli.environments.result import Result
from sspo_cli.environments.self_test import check_confinement
from sspo_cli.environments.server_link import ServerLink, ServerLost, confinement_of_this_machine

__all__ = ["Interpreter", "Result", "Sandbox", "SandboxFailure", "SandboxLimits", "SetupFailed"]

DESCRIPTORS = 8192  # for 4,000 live interpreters
MEMORY_EVERY = 0.1  # seconds between two looks at how much memory the running interpreters have


class Sandbox:
    """A context manager. Start it before anything secret is loaded, in a thread that lives as long as it does.

    failures  how often the fork server was lost and started anew; its interpreters ran their cells again
    """

    def __init__(self, limits: SandboxLimits | None = None) -> None:
        """Start nothing yet. Entering the context raises UserError where programs cannot be confined."""
        self.failures = 0
        self._limits = limits or SandboxLimits()
        self._live: dict[int, Interpreter] = {}  # by the number of their process
        self._memory: dict[int, int] = {}  # bytes that each had when it ran last
        self._numbers = 0

    def __enter__(self) -> Self:
        limits = self._limits
        cpu_seconds = int(20 * limits.call_timeout) + 60  # should the trainer be stopped and nobody hold the clock
        self._confinement = confinement_of_this_machine(limits.memory_mib << 20, cpu_seconds)
        self._parallel = limits.parallel or len(os.sched_getaffinity(0))
        one_each = self._parallel * limits.memory_mib << 20
        self._budget = limits.total_mib << 20 if limits.total_mib else max(available_bytes() // 2, one_each)
        _allow_descriptors()
        self._start_server()
        try:
            check_confinement(self, self._confinement.machine, os.getpid())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._forget_all()
        self._server.close()

    @property
    def server_process_id(self) -> int:
        return self._server.process_id

    def open(self, setup: str | None, seed: int, cells: Iterable[str] = ()) -> Interpreter:
        """Return an interpreter whose random numbers start at `seed`.

        It starts at its first call. `cells` are those that an episode which is continued has run before; they run again
        first, and their output is dropped.
        """
        return Interpreter(setup, seed, list(cells))

    def close(self, interpreters: Iterable[Interpreter]) -> None:
        """End interpreters; an interpreter that has ended is no error."""
        for interpreter in interpreters:
            if interpreter.process:
                number = interpreter.process.number
                self._forget(number)
                with contextlib.suppress(ServerLost):  # then it has ended as well
                    self._server.order(messages.KILL, number)

    def run(self, calls: Sequence[tuple[Interpreter, str]]) -> list[Result]:
        """Run one cell in each of these interpreters, at most `parallel` at a time, and return their results in order.

        An interpreter may occur once. If the fork server is lost or cannot start an interpreter, it is started anew once,
        and what had not ended runs again, each interpreter's earlier cells first. Raises SandboxFailure if that fails as
        well, SetupFailed for a setup that raises.
        """
        results: dict[int, Result] = {}
        try:
            self._run_remaining(calls, results)
        except (ServerLost, SandboxFailure):
            self._restart_server()
            try:
                self._run_remaining(calls, results)
            except ServerLost:  # the next run starts it anew
                self._forget_all()
                raise SandboxFailure("the sandbox's fork server ended twice within one turn") from None
        return [results[index] for index in range(len(calls))]

    def _run_remaining(self, calls: Sequence[tuple[Interpreter, str]], results: dict[int, Result]) -> None:
        waiting = deque(index for index in range(len(calls)) if index not in results)
        running: dict[Call, int] = {}
        look_at_memory = time.monotonic() + MEMORY_EVERY
        try:
            self._read_notices(running)
            while waiting or running:
                while waiting and len(running) < self._parallel:
                    index = waiting.popleft()
                    interpreter, code = calls[index]
                    running[Call(interpreter, code, self._limits, self._server, self._next_number)] = index
                    self._live.update({call.process.number: call.interpreter for call in running})
                self._await_events(running, look_at_memory)
                now = time.monotonic()
                for call in running:
                    if call.result is None:
                        call.check_deadline(now)
                for call in [call for call in running if call.result]:
                    assert call.result
                    results[running.pop(call)] = call.result
                if now >= look_at_memory:
                    self._keep_memory_budget(running)
                    look_at_memory = now + MEMORY_EVERY
        except BaseException:  # nothing is left half run; cells that had ended run again at the next call
            self.close(call.interpreter for call in running)
            raise

    def _await_events(self, running: dict[Call, int], latest: float) -> None:
        """Handle what arrives until `latest` at the latest."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._server, selectors.EVENT_READ, None)
            for call in running:
                call.register(selector)
            until = min([latest, *(call.deadline for call in running)])
            events = selector.select(max(0.0, until - time.monotonic()))
        for key, mask in events:
            if key.data and key.data.result is None:
                key.data.handle(key.fd, mask)
        if any(key.data is None for key, _ in events):  # last: an end closes descriptors
            self._read_notices(running)

    def _read_notices(self, running: dict[Call, int]) -> None:
        for kind, number, value in self._server.notices():
            interpreter = self._live.get(number)
            call = next((call for call in running if call.interpreter is interpreter), None) if interpreter else None
            if interpreter is None:
                continue  # closed in the meantime
            if kind == messages.STARTED and interpreter.process:
                interpreter.process.process_id = value
            elif kind == messages.NOT_STARTED:
                raise SandboxFailure(f"no interpreter could be forked: {os.strerror(value)}")
            elif kind == messages.ENDED:
                del self._live[number]
                self._memory.pop(number, None)
                if call and call.result is None:
                    call.process_ended(value)
                    self._live.update({call.process.number: interpreter} if interpreter.process else {})
                else:
                    interpreter.forget()

    def _keep_memory_budget(self, running: Iterable[Call]) -> None:
        """End the largest interpreters, running or not, while all together have too much."""
        by_number = {call.process.number: call for call in running if call.interpreter.process}
        for number, call in by_number.items():
            self._memory[number] = max(0, private_bytes(call.process.process_id) - self._shared)
        while sum(self._memory.values()) > self._budget:
            largest = max(self._memory, key=self._memory.__getitem__)
            del self._memory[largest]
            if largest in by_number:
                by_number[largest].kill("memory")
            elif interpreter := self._live.get(largest):
                self.close([interpreter])
                interpreter.cells.clear()
                interpreter.note = f"Out of memory between two calls: {GONE}."

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _start_server(self) -> None:
        self._server = ServerLink(self._confinement)
        self._shared = private_bytes(self._server.process_id)  # with every interpreter, until either writes to it

    def _restart_server(self) -> None:
        self._forget_all()
        self._server.close()
        self.failures += 1
        self._start_server()

    def _forget(self, number: int) -> None:
        self._live.pop(number).forget()
        self._memory.pop(number, None)

    def _forget_all(self) -> None:
        for number in list(self._live):
            self._forget(number)


def _allow_descriptors() -> None:
    """Raise this process's own limit where it may: it needs two descriptors for each live interpreter."""
    import resource  # does not exist on Windows, where entering the sandbox has been refused before

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
