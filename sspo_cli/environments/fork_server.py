"""The trusted process from which interpreters are forked, with numpy, sympy and pandas loaded and no other data.

The server is started by exec before gold answers are loaded, because a fork of the trainer would have them in its memory. It
receives orders from the trainer through one socket and reports how its children end. It never reads the output of a child.
"""

import contextlib
import fcntl
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
from collections import deque

from sspo_cli.environments.confinement import (
    CannotConfine,
    Confiner,
    die_with_parent,
    hide_memory,
    landlock_version,
)
from sspo_cli.environments.interpreter import CALLS, CallLoop
from sspo_cli.environments.messages import (
    ENDED,
    INTERRUPT,
    KILL,
    MESSAGE,
    NOT_STARTED,
    NOTICE,
    OPEN,
    ORDER,
    PAUSE,
    READY,
    REFUSED,
    RESUME,
    STARTED,
    Confinement,
)

REQUIRED = ("numpy", "sympy", "pandas")
# Loaded once before the fork, so that programs import them without delay.
PRELOADED = (
    *REQUIRED,
    *(
        "sqlite3",
        "math",
        "cmath",
        "random",
        "itertools",
        "functools",
        "collections",
        "fractions",
        "decimal",
        "datetime",
    ),
    *("re", "string", "json", "statistics", "heapq", "bisect", "operator", "calendar", "typing", "dataclasses", "time"),
)
DESCRIPTORS = 256  # the server uses about a dozen
SIGNALS = {INTERRUPT: signal.SIGINT, PAUSE: signal.SIGSTOP, RESUME: signal.SIGCONT, KILL: signal.SIGKILL}


def serve(descriptor: int, parent: int) -> None:
    """Serve until the trainer closes its end of the socket or exits.

    descriptor  file descriptor of the socket to the trainer
    parent      process id of the trainer
    """
    die_with_parent(parent)
    control = socket.socket(fileno=descriptor)
    confinement = json.loads(control.recv(MESSAGE))
    try:
        confiner = _prepare(Confinement(**confinement))
    except (CannotConfine, ImportError, OSError) as error:
        control.send(NOTICE.pack(REFUSED, 0, 0) + str(error).encode()[: MESSAGE // 2])
        return
    control.send(NOTICE.pack(READY, os.getpid(), 0))
    _Server(control, confiner).run()


def _prepare(confinement: Confinement) -> Confiner:
    landlock_version()  # first, because the imports below are slow
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))  # low, because a child closes all of them
    for name in PRELOADED:
        importlib.import_module(name)
    sympy = importlib.import_module("sympy")

    # Fill the caches that sympy builds at first use.
    x = sympy.Symbol("x")
    sympy.simplify(sympy.solve(x**2 - 3 * x + 2, x)[0] + sympy.sqrt(8) + sympy.Rational(1, 3))
    str(sympy.integrate(sympy.sin(x), x))
    sys.path[:] = [path for path in sys.path if os.path.isdir(path)]
    gc.collect()
    gc.freeze()  # the collector then does not touch shared objects, which would copy their pages in each child
    hide_memory()
    return Confiner(confinement)


class _Server:
    def __init__(self, control: socket.socket, confiner: Confiner) -> None:
        self._control, self._confiner = control, confiner
        self._process_ids: dict[int, int] = {}  # by interpreter number
        self._notices: deque[bytes] = deque()  # sent when the socket has room: the trainer may be busy sending orders
        control.setblocking(False)
        self._child_ended, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        os.set_blocking(self._child_ended, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)

    def run(self) -> None:
        poll = select.poll()
        poll.register(self._child_ended, select.POLLIN)
        while True:
            poll.register(self._control, select.POLLIN | (select.POLLOUT if self._notices else 0))
            events = dict(poll.poll())
            if self._child_ended in events:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._child_ended, 4096)
                self._reap()
            event = events.get(self._control.fileno(), 0)
            if event & select.POLLOUT and self._notices:
                with contextlib.suppress(BlockingIOError):
                    self._control.send(self._notices[0])
                    self._notices.popleft()
            if event & (select.POLLIN | select.POLLHUP) and not self._obey():
                return  # the children end with this process

    def _obey(self) -> bool:
        """Carry out one order; return False if the trainer has closed the socket."""
        order, descriptors, _, _ = socket.recv_fds(self._control, ORDER.size, 2)
        if not order:
            return False
        what, number, seed = ORDER.unpack(order)
        if what == OPEN:
            try:
                self._process_ids[number] = self._fork(descriptors, seed)
                self._notices.append(NOTICE.pack(STARTED, number, self._process_ids[number]))
            except OSError as error:  # out of memory, or too many processes
                self._notices.append(NOTICE.pack(NOT_STARTED, number, error.errno or 0))
            for descriptor in descriptors:
                os.close(descriptor)
        elif number in self._process_ids:  # not reaped yet, so the process id cannot belong to another process
            os.kill(self._process_ids[number], SIGNALS[what])
        return True

    def _fork(self, descriptors: list[int], seed: int) -> int:
        server = os.getpid()
        process_id = os.fork()
        if process_id == 0:
            try:
                die_with_parent(server)
                self._become_interpreter(descriptors)
                CallLoop().serve(seed)
            except BaseException as error:  # the trainer reads this only if the process was not confined
                os.write(1, f"{type(error).__name__}: {error}".encode())
                os._exit(1)
            os._exit(0)
        return process_id

    def _become_interpreter(self, descriptors: list[int]) -> None:
        """Remove the server's signal handlers, close its descriptors, and confine this process."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        calls, output = (fcntl.fcntl(descriptor, fcntl.F_DUPFD, CALLS + 1) for descriptor in descriptors)
        self._control.detach()
        for source, target in ((output, 1), (output, 2), (calls, CALLS)):  # 0 is /dev/null already
            os.dup2(source, target, inheritable=False)
        self._confiner.confine_this_process()
        os.closerange(CALLS + 1, DESCRIPTORS)

    def _reap(self) -> None:
        numbers = {process_id: number for number, process_id in self._process_ids.items()}
        while True:
            try:
                process_id, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if process_id == 0:
                return
            number = numbers[process_id]
            del self._process_ids[number]
            self._notices.append(NOTICE.pack(ENDED, number, status))
