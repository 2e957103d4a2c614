"""The self-test at the start of the sandbox: an interpreter attempts what no program may do, and every attempt must fail."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sspo_cli.environments.calls import SandboxFailure, SetupFailed
from sspo_cli.environments.memory import private_bytes
from sspo_cli.errors import UserError

if TYPE_CHECKING:
    from sspo_cli.environments.sandbox import Sandbox

SECRET = "canary"
CONFINED = "confined"
# The interpreter has not run untrusted code yet, so its output can be trusted here. {secret} is a file of the trainer,
# {folder} a folder that the trainer may write to, {parent} the trainer's process id.
PROGRAM = """
import ctypes, os, signal, socket, subprocess, threading
libc = ctypes.CDLL(None, use_errno=True)

def system_call(number):
    # Of numbers that are the same on all architectures.
    if libc.syscall(ctypes.c_long(number), None, None, None, None, None, None) < 0 and ctypes.get_errno() == 1:
        raise PermissionError

def files():
    return [os.path.join({folder}, "written"), "/dev/shm/sspo-self-test"]

attempts = {{
    "read a file of the trainer": lambda: open({secret}).read(),
    "list a folder of the trainer": lambda: os.listdir({folder}),
    "read the command lines of other processes": lambda: open("/proc/{parent}/cmdline").read(),
    "write a file": lambda: [open(file, "w") for file in files()],
    "create a file": lambda: [os.open(file, os.O_CREAT | os.O_RDONLY) for file in files()],
    "remove a file": lambda: os.unlink({secret}),
    "make a symbolic link": lambda: os.symlink({secret}, os.path.join({folder}, "link")),
    "change a file's mode": lambda: os.chmod({secret}, 0o644),
    "open a network socket": lambda: socket.socket(),
    "open a local socket": lambda: socket.socket(socket.AF_UNIX),
    "fork": lambda: os.fork() or os._exit(0),
    "start a program": lambda: subprocess.run(["/bin/true"]),
    "start a thread": lambda: threading.Thread(target=int).start(),
    "replace itself": lambda: os.execv("/bin/true", ["true"]),
    "signal the trainer": lambda: os.kill({parent}, 0),
    "signal the fork server": lambda: os.kill(os.getppid(), 0),
    "trace a process": lambda: system_call({ptrace}),
    "use io_uring": lambda: system_call(425),
    "open a process by number": lambda: system_call(434),
    "make a namespace": lambda: system_call({unshare}),
}}
done = []
for name, attempt in attempts.items():
    try:
        attempt()
    except (OSError, RuntimeError):
        continue
    done.append(name)
print(", ".join(done) or "confined")
"""
NUMBERS = {"x86_64": {"ptrace": 101, "unshare": 272}, "aarch64": {"ptrace": 117, "unshare": 97}}


def check_confinement(sandbox: "Sandbox", machine: str, parent: int) -> None:
    """Raise UserError unless an interpreter is confined and its memory can be measured."""
    with tempfile.TemporaryDirectory() as folder:
        secret = Path(folder) / "secret"
        secret.write_text(SECRET, encoding="utf-8")
        code = PROGRAM.format(
            secret=json.dumps(str(secret)), folder=json.dumps(folder), parent=parent, **NUMBERS[machine]
        )
        interpreter = sandbox.open(None, seed=0)
        try:
            (result,) = sandbox.run([(interpreter, code)])
            watched = interpreter.process and private_bytes(interpreter.process.process_id)
        except (SandboxFailure, SetupFailed) as error:
            raise UserError(f"the sandbox cannot confine programs here: {error}") from None
        finally:
            sandbox.close([interpreter])
    if result.text != CONFINED:
        raise UserError(
            f"the sandbox does not confine programs here: its self-test could {result.text}; code-acting tasks need a machine "
            "on which Landlock and seccomp work; the calculator task runs anywhere"
        )
    if not watched:
        raise UserError("the sandbox cannot read the memory use of its interpreters; mount /proc without hidepid=")
