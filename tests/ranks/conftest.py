"""Forks of the test process as ranks, because starting Python and torch for each takes most of the time."""

import gc
import os
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace

import pytest

from sspo_cli import supervisor


class Forked:
    """What the supervisor needs of a `subprocess.Popen` of Python."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], **_: object) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            os._exit(run_as(command[1:], env))

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_as(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Do what Python does with the arguments, and return its exit code."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        signal.signal(number, handler)
    gc.freeze()  # the test's own objects have threads that a fork does not have, and are never to be freed here
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


@pytest.fixture(scope="session")
def forked_ranks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervisor, "subprocess", SimpleNamespace(Popen=Forked, DEVNULL=subprocess.DEVNULL))
        yield
