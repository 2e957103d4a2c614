"""The system calls that a confined program may make, as a seccomp filter in classic BPF. Standard library only.

Every other call fails with EPERM: a program cannot create a process, thread, socket, file or shared memory or send a
signal, and cannot use kernel features that are newer than this list.
"""

import errno
import struct

# Numbers on x86_64 and aarch64 by name; None if the architecture does not have the call.
ALLOWED = {
    # Open descriptors.
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "lseek": (8, 62),
    "pread64": (17, 67),
    "readv": (19, 65),
    "writev": (20, 66),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "close_range": (436, 436),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    # Names and attributes of files; Landlock decides which of them may be opened.
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    # Memory.
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "brk": (12, 214),
    # Signals and timers of the process itself.
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "getitimer": (36, 102),
    "setitimer": (38, 103),
    "alarm": (37, None),
    "restart_syscall": (219, 128),
    # Time.
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "time": (201, None),
    # Queries about the process itself and the machine.
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
    "getgroups": (115, 158),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "times": (100, 153),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "getcpu": (309, 168),
    "sched_getaffinity": (204, 123),
    "sched_yield": (24, 124),
    "getrandom": (318, 278),
    # Calls that the C library needs within one thread.
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
# Calls that are allowed for some arguments: numbers, index of the argument, allowed values.
OPEN = {"open": ((2, None), 1), "openat": ((257, 56), 2)}
IOCTL, FCNTL, PRLIMIT64 = (16, 29), (72, 25), (302, 261)
# Linux's numbers are written out, because other systems import this module too.
REQUESTS = {
    IOCTL: (0x5401, 0x5413, 0x541B, 0x5451),  # TCGETS, TIOCGWINSZ, FIONREAD, FIOCLEX
    # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC. Not F_SETOWN and F_SETLEASE, which send signals, nor
    # F_SETPIPE_SZ, which takes kernel memory.
    FCNTL: (0, 1, 2, 3, 1030),
}
# The C library falls back on older calls after ENOSYS, but not after EPERM.
ABSENT = {"clone3": (435, 435), "openat2": (437, 437)}
# O_TMPFILE includes O_DIRECTORY, which reading a folder needs; it works only together with O_WRONLY or O_RDWR. Landlock
# does not restrict O_PATH.
NOT_READING = 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000 | 0o10000000  # O_WRONLY, _RDWR, _CREAT, _TRUNC, _APPEND, _PATH

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the tables, AUDIT_ARCH
X32 = 0x40000000  # bit of the numbers of x86_64's second ABI

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data


def filter_program(machine: str) -> bytes:
    """Compile the filter for a machine of `ARCHITECTURES`, as an array of struct sock_filter."""
    column, architecture = ARCHITECTURES[machine]
    program = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_EQUAL, architecture, skip_true=1),
        _instruction(_RETURN, _KILL),  # a call of another ABI, such as `int 0x80`
        _instruction(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":
        program += [_instruction(_AT_LEAST, X32, skip_false=1), _instruction(_RETURN, _KILL)]
    for numbers in ALLOWED.values():
        program += _rule(numbers[column], [_instruction(_RETURN, _ALLOW)])
    for numbers in ABSENT.values():
        program += _rule(numbers[column], [_instruction(_RETURN, _FAIL | errno.ENOSYS)])
    for numbers, argument in OPEN.values():
        program += _rule(numbers[column], _reads_only(argument))
    for numbers, requests in REQUESTS.items():
        program += _rule(numbers[column], _one_of(1, requests))
    program += _rule(PRLIMIT64[column], _asks_about_itself())
    return b"".join([*program, _instruction(_RETURN, _FAIL | errno.EPERM)])


def _instruction(code: int, value: int, *, skip_true: int = 0, skip_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, skip_true, skip_false, value)


def _rule(number: int | None, verdict: list[bytes]) -> list[bytes]:
    """Return the instructions for calls of this number; every path through `verdict` must return."""
    return [] if number is None else [_instruction(_EQUAL, number, skip_false=len(verdict)), *verdict]


def _argument(index: int, half: int = 0) -> bytes:
    """Load the low (half 0) or high (half 1) 32 bits of an argument; both architectures are little-endian."""
    return _instruction(_LOAD, 16 + 8 * index + 4 * half)


def _reads_only(flags: int) -> list[bytes]:
    return [
        _argument(flags),
        _instruction(_ANY_BIT, NOT_READING, skip_false=1),
        _instruction(_RETURN, _FAIL | errno.EROFS),
        _instruction(_RETURN, _ALLOW),
    ]


def _one_of(argument: int, requests: tuple[int, ...]) -> list[bytes]:
    """Allow these requests of ioctl or fcntl. Only the low 32 bits are compared, because the kernel reads only these."""
    program = [_argument(argument)]
    for request in requests:
        program += [_instruction(_EQUAL, request, skip_false=1), _instruction(_RETURN, _ALLOW)]
    return [*program, _instruction(_RETURN, _FAIL | errno.EPERM)]


def _asks_about_itself() -> list[bytes]:
    """Allow prlimit64 only for process 0, which is the caller, and only without a new limit."""
    program = []
    for argument, half in ((0, 0), (2, 0), (2, 1)):
        program += [_argument(argument, half), _instruction(_EQUAL, 0, skip_true=1)]
        program += [_instruction(_RETURN, _FAIL | errno.EPERM)]
    return [*program, _instruction(_RETURN, _ALLOW)]
