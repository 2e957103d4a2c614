"""Permanent confinement of a process by limits, capabilities, Landlock and seccomp. Standard library only.

Landlock limits which files can be read; seccomp forbids every system call except those for reading and computing. Both are
needed: without seccomp a program can send a UDP packet, without Landlock it can read `/etc/shadow` and the command lines
of other processes. No step needs root, a namespace or a setuid program. Neither the process nor its children can undo a
step.
"""

import ctypes
import errno
import fcntl
import os
import resource
import struct
from collections.abc import Iterable

from sspo_cli.environments.messages import Confinement

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_SECCOMP_MODE_FILTER = 2
_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION = 0x20080522
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
# The rights of Landlock's ABI 1, and those that ABI 2, 3 and 5 add: refer, truncate, ioctl on devices.
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_NETWORK_RIGHTS = 0b11  # ABI 4: bind and connect of TCP
_SCOPES = 0b11  # ABI 6: no abstract sockets and signals to processes outside the domain

_libc = ctypes.CDLL(None, use_errno=True)


class CannotConfine(Exception):
    """A feature that confinement needs is missing; the message states the feature and a remedy."""


class Confiner:
    """Confines children of this process. Raises CannotConfine if the kernel has no Landlock."""

    def __init__(self, confinement: Confinement) -> None:
        self._confinement = confinement
        self._filter = bytes.fromhex(confinement.filter)
        rules = _landlock_rules(confinement.readable)
        # A high number, which does not collide with the descriptors that a child gets.
        self._rules = fcntl.fcntl(rules, fcntl.F_DUPFD_CLOEXEC, 64)
        os.close(rules)
        with open("/proc/self/statm", encoding="ascii") as file:
            self._address_space = int(file.read().split()[0]) * resource.getpagesize()

    def confine_this_process(self) -> None:
        """Confine a newly forked child. Raises OSError if a step fails."""
        self._set_limits()
        _prefer_for_oom_killer()
        _prctl(_PR_SET_DUMPABLE, 0)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _drop_capabilities(self._confinement.machine)
        _syscall(_LANDLOCK_RESTRICT, self._rules, 0)
        os.close(self._rules)
        program = ctypes.create_string_buffer(self._filter)
        header = struct.pack("HxxxxxxP", len(self._filter) // 8, ctypes.addressof(program))
        _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.create_string_buffer(header))

    def _set_limits(self) -> None:
        limits = {
            resource.RLIMIT_AS: self._address_space + self._confinement.memory,
            resource.RLIMIT_CPU: self._confinement.cpu_seconds,
            resource.RLIMIT_STACK: 64 << 20,
            resource.RLIMIT_NOFILE: 64,
            resource.RLIMIT_FSIZE: 0,
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_MEMLOCK: 0,
            resource.RLIMIT_MSGQUEUE: 0,
        }
        for which, limit in limits.items():
            _, hard = resource.getrlimit(which)
            limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(which, (limit, limit))


def die_with_parent(parent: int) -> None:
    """Make the kernel kill this process when the thread that started it ends; exit if `parent` has already ended."""
    _prctl(_PR_SET_PDEATHSIG, 9)
    if os.getppid() != parent:
        os._exit(1)


def hide_memory() -> None:
    """Forbid other processes of the same user to trace this process and to read its memory."""
    _prctl(_PR_SET_DUMPABLE, 0)


def landlock_version() -> int:
    """Return the kernel's Landlock ABI. Raises CannotConfine if it has none."""
    try:
        return _syscall(_LANDLOCK_CREATE, None, 0, 1)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            reason = "Landlock is switched off on this kernel; add `landlock` to the boot parameter lsm="
        elif error.errno == errno.ENOSYS:
            reason = "this kernel has no Landlock, or a container's profile hides it; it needs Linux 5.13 or newer"
        else:
            reason = f"Landlock cannot be used ({error.strerror}); a container's profile may forbid it"
        raise CannotConfine(reason) from None


def _landlock_rules(readable: Iterable[str]) -> int:
    """Return the descriptor of a rule set that forbids everything except reading below the paths `readable`."""
    version = landlock_version()
    rights = sum(bits for since, bits in _FILE_RIGHTS.items() if since <= version)
    attributes = struct.pack("=Q", rights)
    if version >= 4:
        attributes += struct.pack("=Q", _NETWORK_RIGHTS)
    if version >= 6:
        attributes += struct.pack("=Q", _SCOPES)
    rules = _syscall(_LANDLOCK_CREATE, ctypes.create_string_buffer(attributes, len(attributes)), len(attributes), 0)
    for path in readable:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        allowed = _READ_FILE | (_READ_FOLDER if os.path.isdir(path) else 0)
        beneath = struct.pack("=Qi", allowed, descriptor)
        _syscall(_LANDLOCK_ADD, rules, 1, ctypes.create_string_buffer(beneath, len(beneath)), 0)
        os.close(descriptor)
    return rules


def _prefer_for_oom_killer() -> None:
    """Make this process the first one that the kernel kills if memory runs out.

    The process is made dumpable first, because otherwise its files in /proc belong to root.
    """
    _prctl(_PR_SET_DUMPABLE, 1)
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")
    except OSError:  # /proc is read-only; the sandbox's own memory budget still holds
        pass


def _drop_capabilities(machine: str) -> None:
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION, 0))
    _syscall(_CAPSET[machine], header, ctypes.create_string_buffer(24))


def _prctl(option: int, value: int, argument: object = None) -> None:
    nothing = ctypes.c_ulong(0)
    if _libc.prctl(option, ctypes.c_ulong(value), argument or nothing, nothing, nothing) < 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}: {os.strerror(ctypes.get_errno())}")


def _syscall(number: int, *arguments: object) -> int:
    # syscall is variadic in C, so integers must be passed as wide as the kernel reads them.
    wide = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result = _libc.syscall(ctypes.c_long(number), *wide)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"system call {number}: {os.strerror(ctypes.get_errno())}")
    return int(result)
