"""What the trainer and the fork server send each other. Any system can read it."""

import struct
from dataclasses import dataclass

ORDER = struct.Struct("=cQQ")  # what, the interpreter's number, a seed
OPEN, INTERRUPT, PAUSE, RESUME, KILL = b"o", b"i", b"p", b"r", b"k"
NOTICE = struct.Struct("=cQq")  # what, the interpreter's number, process id, errno or wait status
READY, REFUSED, STARTED, NOT_STARTED, ENDED = b"r", b"f", b"s", b"n", b"e"
MESSAGE = 1 << 16  # bytes; a configuration is the longest


@dataclass(frozen=True, slots=True)
class Confinement:
    """What the children of one server are confined by; made once, before any of them.

    machine      of `syscalls.ARCHITECTURES`
    filter       of system calls, as `syscalls.filter_program` compiles it, in hexadecimal
    readable     files and folders that may be read, with all below them
    memory       bytes of address space, in addition to what the server has
    cpu_seconds  of one interpreter, should nobody be left to end it
    """

    machine: str
    filter: str
    readable: tuple[str, ...]
    memory: int
    cpu_seconds: int
