"""The trainer's connection to the fork server, which starts the server, sends orders and reads notices."""

import json
import os
import platform
import selectors
import site
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO

from sspo_cli.environments import messages
from sspo_cli.environments.messages import Confinement
from sspo_cli.environments.syscalls import ARCHITECTURES, filter_program
from sspo_cli.errors import UserError

STARTING = 120.0  # most seconds until the server has loaded its packages
PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); from sspo_cli.environments.fork_server import serve; "
    "del sys.path[0]; serve(int(sys.argv[2]), int(sys.argv[3]))"
)
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "PYTHONHASHSEED": "0",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
ADVICE = "code-acting tasks need a Linux machine that can confine programs; the calculator task runs anywhere"


class ServerLost(Exception):
    """The fork server ended unexpectedly."""


class ServerLink:
    """A running fork server. Raises UserError if it cannot be started or cannot confine programs."""

    def __init__(self, confinement: Confinement) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the server)
        root = str(Path(__file__).parents[2])
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-B", "-c", PROGRAM, root, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env=ENVIRONMENT,
                cwd="/",
                start_new_session=True,  # so that Ctrl-C reaches only the trainer
            )
        try:
            self._control.settimeout(STARTING)
            self._control.send(json.dumps(asdict(confinement)).encode())
            self._await_ready()
        except BaseException:
            self.close()
            raise
        self._control.setblocking(False)

    def fileno(self) -> int:
        return self._control.fileno()

    @property
    def process_id(self) -> int:
        return self._process.pid

    def open(self, number: int, seed: int, calls: socket.socket, output: int) -> None:
        """Order the server to fork an interpreter that answers calls on `calls` and prints to `output`."""
        order = messages.ORDER.pack(messages.OPEN, number, seed)
        self._send(lambda: socket.send_fds(self._control, [order], [calls.fileno(), output]))

    def order(self, what: bytes, number: int) -> None:
        """Send the signal `what` to an interpreter, unless it has ended. Raises ServerLost if the server has ended."""
        order = messages.ORDER.pack(what, number, 0)
        self._send(lambda: self._control.send(order))

    def notices(self) -> list[tuple[bytes, int, int]]:
        """Return the notices that have arrived as (kind, interpreter number, and process id, errno or wait status).

        Raises ServerLost if the server has ended.
        """
        arrived: list[tuple[bytes, int, int]] = []
        while True:
            try:
                notice = self._control.recv(messages.NOTICE.size)
            except BlockingIOError:
                return arrived
            except OSError as error:
                raise ServerLost from error
            if not notice:
                raise ServerLost
            arrived.append(messages.NOTICE.unpack(notice))

    def close(self) -> None:
        """End the server and all its interpreters."""
        self._control.close()
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def _send(self, send: Callable[[], object]) -> None:
        while True:
            try:
                send()
                return
            except BlockingIOError:  # the server is busy forking; it never blocks on its notices
                with selectors.DefaultSelector() as selector:
                    selector.register(self._control, selectors.EVENT_WRITE)
                    selector.select(timeout=1.0)
            except OSError as error:
                raise ServerLost from error

    def _await_ready(self) -> None:
        try:
            notice = self._control.recv(messages.MESSAGE)
        except TimeoutError:
            raise UserError(f"the sandbox's fork server did not start within {STARTING:g} s") from None
        except OSError:
            notice = b""
        kind, reason = notice[:1], notice[messages.NOTICE.size :].decode(errors="replace")
        if kind == messages.REFUSED:
            raise UserError(f"the sandbox cannot confine programs here: {reason}; {ADVICE}")
        if kind != messages.READY:
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines()
            raise UserError(f"the sandbox's fork server did not start: {said[-1] if said else 'it ended at once'}")


def confinement_of_this_machine(memory: int, cpu_seconds: int) -> Confinement:
    """Return the confinement for this system. Raises UserError if the system is not supported."""
    if sys.platform != "linux" or platform.machine() not in ARCHITECTURES or sys.maxsize < 1 << 32:
        raise UserError(
            f"the sandbox confines programs on 64-bit Linux on {' or '.join(ARCHITECTURES)}, not on "
            f"{platform.system()} on {platform.machine()}; {ADVICE}"
        )
    machine = platform.machine()
    return Confinement(machine, filter_program(machine).hex(), readable_paths(), memory, cpu_seconds)


def readable_paths() -> tuple[str, ...]:
    """Return the paths of Python, its packages and the system's libraries, which hold no files of users or experiments."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    python = {sysconfig.get_path(name) for name in names} | {os.path.join(sys.base_prefix, "lib")}
    python |= set(site.getsitepackages())  # a different folder in Debian's Python
    system = {"/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo"}
    return tuple(sorted(python | system | {"/dev/null", "/dev/urandom"}))
