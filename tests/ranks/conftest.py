"""Forks of the test process as ranks and trials, because starting Python and torch for each takes most of the time."""

import gc
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from sspo_cli import supervisor
from sspo_cli.sweep import place


class Forked:
    """A forked process with the part of the interface of `subprocess.Popen` that the supervisor and a sweep use."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], stdout: Any = None, **_: object) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            if hasattr(stdout, "fileno"):  # the log of a trial
                for number in (1, 2):
                    os.dup2(stdout.fileno(), number)
                sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
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


FORKING = SimpleNamespace(Popen=Forked, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT)


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
        patch.setattr(supervisor, "subprocess", FORKING)
        yield


@pytest.fixture
def forked_trials(forked_ranks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "subprocess", FORKING)
