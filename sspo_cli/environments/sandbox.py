"""A sandbox that runs many untrusted Python programs in parallel: text in, text out.

A trusted fork server (`fork_server`) forks one interpreter per episode, which confines itself (`confinement`) before it
receives any code. An interpreter can compute and can read Python's and the system's libraries. It cannot create a process,
a thread, a file, a socket, a pipe or shared memory, send a signal, or read other files. It is suspended between calls, so no
code runs in the background. Because of these limits, programs have no threads, subprocesses, writable files, pip, asyncio or
network. The names, sizes and times of other files are visible, but their contents are not.

The sandbox needs 64-bit Linux 5.13 or newer with Landlock, on x86_64 or aarch64. It needs no root, namespaces, setuid
programs or other packages, and runs in containers whose profile allows Landlock, as Docker's does. On any other system, and
if its start-up self-test shows that a program could do something forbidden, it refuses to start. No option runs code outside
the sandbox.
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

DESCRIPTORS = 8192  # enough for 4,000 live interpreters
MEMORY_EVERY = 0.1  # seconds between two measurements of the running interpreters' memory


class Sandbox:
    """A context manager that runs code in confined interpreters.

    Enter the sandbox before anything secret is loaded, in a thread that outlives the `with` block: the fork server ends with
    this thread.

    failures  number of times that the fork server was lost and restarted; interpreters then run their earlier cells again
    """

    def __init__(self, limits: SandboxLimits | None = None) -> None:
        """Store the limits; the sandbox starts on entry, which raises UserError if programs cannot be confined."""
        self.failures = 0
        self._limits = limits or SandboxLimits()
        self._live: dict[int, Interpreter] = {}  # by process number
        self._memory: dict[int, int] = {}  # bytes at the last measurement, by process number
        self._numbers = 0

    def __enter__(self) -> Self:
        limits = self._limits
        # Applies if the trainer is stopped and cannot enforce the time limit.
        cpu_seconds = int(20 * limits.call_timeout) + 60
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
        """Create an interpreter, whose process starts with its first call.

        setup  code that runs before the first cell, or None
        seed   seed of the interpreter's random numbers
        cells  the earlier cells of a continued episode; they run first, and their output is discarded
        """
        return Interpreter(setup, seed, list(cells))

    def close(self, interpreters: Iterable[Interpreter]) -> None:
        """End interpreters; skip those that have already ended."""
        for interpreter in interpreters:
            if interpreter.process:
                number = interpreter.process.number
                self._forget(number)
                with contextlib.suppress(ServerLost):  # the interpreter ended when the server ended
                    self._server.order(messages.KILL, number)

    def run(self, calls: Sequence[tuple[Interpreter, str]]) -> list[Result]:
        """Run one cell in each of these distinct interpreters, at most `parallel` at a time; return results in order.

        If the fork server is lost or cannot start an interpreter, it is restarted once. Calls that had not ended run again,
        after the earlier cells of their interpreters. Raises SandboxFailure if the second attempt fails too, and SetupFailed
        if a setup raises an exception or does not end.
        """
        results: dict[int, Result] = {}
        try:
            self._run_remaining(calls, results)
        except (ServerLost, SandboxFailure):
            self._restart_server()
            try:
                self._run_remaining(calls, results)
            except ServerLost:  # the next call of `run` restarts it
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
        except BaseException:  # no cell is left half run; the next call runs the completed cells again
            self.close(call.interpreter for call in running)
            raise

    def _await_events(self, running: dict[Call, int], latest: float) -> None:
        """Wait for events until `latest`, and handle those that arrive."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._server, selectors.EVENT_READ, None)
            for call in running:
                call.register(selector)
            until = min([latest, *(call.deadline for call in running)])
            events = selector.select(max(0.0, until - time.monotonic()))
        for key, mask in events:
            if key.data and key.data.result is None:
                key.data.handle(key.fd, mask)
        if any(key.data is None for key, _ in events):  # last, because the end of a process closes its descriptors
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
        """End the largest interpreters, running or not, until the total is within the budget."""
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
        self._shared = private_bytes(self._server.process_id)  # shared with every interpreter until either writes to it

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
    """Raise this process's limit of descriptors as far as allowed, because each live interpreter uses two."""
    import resource  # not available on Windows, where the sandbox has refused to start before this point

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
