"""The sandbox refuses to start, with one sentence, if programs cannot be confined."""

import os
import platform
import struct
import subprocess
import sys
from dataclasses import replace

import pytest

from sspo_cli.environments import confinement, server_link
from sspo_cli.environments import sandbox as sandbox_module
from sspo_cli.environments.sandbox import Sandbox
from sspo_cli.errors import UserError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="system calls are Linux's")

# Starts a sandbox in a process whose kernel seems to lack a system call: every later call of that number fails.
WITHOUT = """
import ctypes, struct, sys
number, error = int(sys.argv[1]), int(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in
    ((0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x50000 | error), (0x06, 0, 0, 0x7fff0000))))
libc.prctl(38, 1, 0, 0, 0)
header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(program)))
assert libc.prctl(22, 2, header, 0, 0) == 0
from sspo_cli.environments.sandbox import Sandbox
from sspo_cli.errors import UserError
try:
    Sandbox().__enter__()
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (38, "this kernel has no Landlock, or a container's profile hides it; it needs Linux 5.13 or newer"),
        (95, "Landlock is switched off on this kernel; add `landlock` to the boot parameter lsm="),
        (1, "Landlock cannot be used (system call 444: Operation not permitted); a container's profile may forbid it"),
    ],
)
def test_a_kernel_without_landlock(error, said):
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT, "444", str(error)], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"the sandbox cannot confine programs here: {said}; {server_link.ADVICE}\n"


def test_windows_plays_the_calculator_and_refuses_code():
    """Without the modules that Windows lacks, everything is imported, the calculator works, and the sandbox refuses to start."""
    program = (
        "import sys\nfor name in ('fcntl', 'resource', 'termios'): sys.modules[name] = None\n"
        "import sspo_cli.environments.codeact\n"
        "from sspo_cli.environments.calculator import CalculatorEnvironment\n"
        "from sspo_cli.environments.sandbox import Sandbox\n"
        "from sspo_cli.errors import UserError\nfrom sspo_cli.rewards import AnswerChecker\nfrom sspo_cli.types import Problem\n"
        "environment = CalculatorEnvironment(AnswerChecker())\n"
        "episode = environment.open(Problem('1', '', '6', 'calculator'), 0)\n"
        "print(environment.step([(episode, '<execute>2*3</execute>')]))\n"
        "sys.platform = 'win32'\ntry: Sandbox().__enter__()\nexcept UserError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("['6']\nthe sandbox confines programs on 64-bit Linux")


@pytest.mark.parametrize(("system", "machine"), [("darwin", "arm64"), ("win32", "AMD64"), ("linux", "riscv64")])
def test_another_system(monkeypatch, system, machine):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(UserError, match=rf"confines programs on 64-bit Linux .*{machine}; .* the calculator task runs"):
        Sandbox().__enter__()


def refusal_of(monkeypatch: pytest.MonkeyPatch, **changed: object) -> str:
    """Start a sandbox whose confinement is changed, and return its error message."""
    original = server_link.confinement_of_this_machine
    monkeypatch.setattr(
        sandbox_module, "confinement_of_this_machine", lambda *limits: replace(original(*limits), **changed)
    )
    with pytest.raises(UserError) as error:
        Sandbox().__enter__()
    return str(error.value)


def test_a_filter_that_the_kernel_refuses(sandbox, monkeypatch):
    """On a simulated kernel without seccomp, the interpreter ends before it reads any code."""
    said = refusal_of(monkeypatch, filter="ff" * 8)
    assert "cannot confine programs here: an interpreter could not be confined: OSError: [Errno 22] prctl 22" in said


def test_its_own_look_finds_what_landlock_and_seccomp_let_through(sandbox, monkeypatch):
    allow_all = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
    said = refusal_of(monkeypatch, filter=allow_all.hex())
    assert (
        "its self-test could change a file's mode, open a network socket, open a local socket, fork, start a thread"
        in said
    )
    assert "read a file" not in said  # Landlock still works
    said = refusal_of(monkeypatch, readable=("/",))
    assert (
        "its self-test could read a file of the trainer, list a folder of the trainer, read the command lines" in said
    )
    assert "fork" not in said  # seccomp still works


def test_a_server_that_cannot_start(sandbox, monkeypatch):
    monkeypatch.setattr(server_link, "PROGRAM", "import no_such_package")
    with pytest.raises(
        UserError, match="fork server did not start: ModuleNotFoundError: No module named 'no_such_package'"
    ):
        Sandbox().__enter__()


def test_only_libraries_may_be_read():
    paths = server_link.readable_paths()
    here = os.path.realpath(confinement.__file__)
    assert not any(here.startswith(os.path.realpath(path) + os.sep) for path in paths)
    assert not {"/", "/usr", "/etc", "/home", "/root", "/proc", "/tmp", sys.prefix, sys.base_prefix} & set(paths)
