"""Tests of the system call filter on both architectures; a small BPF interpreter runs it on each call."""

import errno
import fcntl
import os
import struct
import sys
import termios

import pytest

from sspo_cli.environments.syscalls import ABSENT, ALLOWED, ARCHITECTURES, filter_program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="system calls are Linux's")

ALLOW, KILL = 0x7FFF0000, 0x80000000
COLUMNS = {"x86_64": 0, "aarch64": 1}
# Numbers from the kernel's tables, for x86_64 and aarch64.
FORBIDDEN = {
    "clone": (56, 220),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "pidfd_open": (434, 434),
    "io_uring_setup": (425, 425),
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "bpf": (321, 280),
    "keyctl": (250, 219),
    "prctl": (157, 167),
    "seccomp": (317, 277),
    "setrlimit": (160, 164),
    "chdir": (80, 49),
    "chmod": (90, None),
    "fchmodat": (268, 53),
    "unlinkat": (263, 35),
    "symlinkat": (266, 36),
    "mkdirat": (258, 34),
    "renameat2": (316, 276),
    "truncate": (76, 45),
    "pipe2": (293, 59),
    "timer_create": (222, 107),
    "setuid": (105, 146),
    "unheard_of": (460, 460),
}


def verdict(machine: str, number: int, *arguments: int, architecture: int | None = None) -> int:
    """Run the filter on a `struct seccomp_data` and return its verdict."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    audit = ARCHITECTURES[machine][1] if architecture is None else architecture
    data = struct.pack("<IIQ6Q", number, audit, 0, *(argument & (1 << 64) - 1 for argument in padded))
    program = list(struct.iter_unpack("=HBBI", filter_program(machine)))
    place = accumulator = 0
    while True:
        code, skip_true, skip_false, value = program[place]
        place += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == 0x06:
            return value
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
            place += skip_true if holds else skip_false


@pytest.mark.parametrize("machine", ARCHITECTURES)
class TestFilter:
    def test_what_is_listed_is_allowed_and_nothing_else(self, machine):
        column = COLUMNS[machine]
        listed = {numbers[column] for numbers in ALLOWED.values()} - {None}
        conditional = {0: {2, 257, 16, 72, 302}, 1: {56, 29, 25, 261}}[column]
        absent = {numbers[column] for numbers in ABSENT.values()}
        for number in range(600):
            if number in listed:
                assert verdict(machine, number, 7, 7, 7) == ALLOW
            elif number in absent:
                assert verdict(machine, number) == 0x50000 | errno.ENOSYS
            elif number not in conditional:
                assert verdict(machine, number) == 0x50000 | errno.EPERM

    @pytest.mark.parametrize("name", FORBIDDEN)
    def test_dangerous_calls_fail(self, machine, name):
        if (number := FORBIDDEN[name][COLUMNS[machine]]) is not None:
            assert verdict(machine, number) == 0x50000 | errno.EPERM

    def test_other_abis_are_killed(self, machine):
        assert verdict(machine, 0, architecture=0x40000003) == KILL  # int 0x80 on x86_64
        if machine == "x86_64":
            assert verdict(machine, 0x40000000 | 39) == KILL

    @pytest.mark.parametrize("flags", ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND", "O_TMPFILE", "O_PATH"])
    def test_files_open_for_reading_alone(self, machine, flags):
        openat = (257, 56)[COLUMNS[machine]]
        bits = getattr(os, flags) | (os.O_RDWR if flags == "O_TMPFILE" else 0)
        assert verdict(machine, openat, -100, 0, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY) == ALLOW
        assert verdict(machine, openat, -100, 0, bits | os.O_CLOEXEC) == 0x50000 | errno.EROFS
        if machine == "x86_64":
            assert verdict(machine, 2, 0, os.O_RDONLY) == ALLOW
            assert verdict(machine, 2, 0, bits) == 0x50000 | errno.EROFS

    def test_descriptors_are_asked_not_changed(self, machine):
        ioctl, control = ((16, 29)[COLUMNS[machine]], (72, 25)[COLUMNS[machine]])
        assert verdict(machine, ioctl, 1, termios.TCGETS) == ALLOW
        assert verdict(machine, ioctl, 1, termios.TIOCSTI) == 0x50000 | errno.EPERM
        assert verdict(machine, control, 1, fcntl.F_GETFL) == ALLOW
        assert verdict(machine, control, 1, fcntl.F_SETOWN) == 0x50000 | errno.EPERM
        assert verdict(machine, control, 1, fcntl.F_SETFL) == 0x50000 | errno.EPERM

    @pytest.mark.parametrize(
        ("arguments", "allowed"), [((0, 9, 0), 1), ((0, 9, 1), 0), ((0, 9, 1 << 40), 0), ((7, 9, 0), 0)]
    )
    def test_limits_of_itself_are_read(self, machine, arguments, allowed):
        expected = ALLOW if allowed else 0x50000 | errno.EPERM
        assert verdict(machine, (302, 261)[COLUMNS[machine]], *arguments) == expected
