"""Forks of the test process as runs, ranks and trials, because starting Python and torch for each takes most of the time."""

import gc
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any


class Forked:
    """A forked process with the part of the interface of `subprocess.Popen` that the supervisor and a sweep use."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        stdout: Any = None,
        preexec_fn: Callable[[], None] | None = None,
        **_: object,
    ) -> None:
        self.returncode: int | None = None
        gc.disable()
        self.pid = os.fork()
        if not self.pid:
            gc.freeze()  # a fork lacks the threads of the test's objects, so it must not free them
        gc.enable()
        if not self.pid:
            if preexec_fn:
                preexec_fn()
            if hasattr(stdout, "fileno"):  # the log of a trial
                for number in (1, 2):
                    os.dup2(stdout.fileno(), number)
                sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
            os._exit(run_as(command[1:], env))

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.01)
        return self.returncode or 0

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Captured(Forked):
    """A fork that runs `python` with the arguments and keeps both of its outputs."""

    def __init__(self, *arguments: object) -> None:
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as this is)
        super().__init__([sys.executable, *map(str, arguments)], env=dict(os.environ), stdout=self._output)

    def communicate(self) -> tuple[str, None]:
        """Wait for the end and return (output, None), as `subprocess.Popen` does with stderr in stdout."""
        self.wait()
        self._output.seek(0)
        return self._output.read(), None


FORKING = SimpleNamespace(Popen=Forked, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT)


def run_as(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run Python with the arguments in this process, and return its exit code."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        signal.signal(number, handler)
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    try:
        if arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            exec(arguments[1], {"__name__": "__main__"})
        elif arguments[0] == "-m":
            sys.argv = list(arguments[1:])
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(arguments)
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        return 1
    return 0
