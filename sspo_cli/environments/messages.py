"""Messages between the trainer and the fork server. This module can be imported on any system."""

import struct
from dataclasses import dataclass

ORDER = struct.Struct("=cQQ")  # kind, interpreter number, seed
OPEN, INTERRUPT, PAUSE, RESUME, KILL = b"o", b"i", b"p", b"r", b"k"
NOTICE = struct.Struct("=cQq")  # kind, interpreter number, and process id, errno or wait status
READY, REFUSED, STARTED, NOT_STARTED, ENDED = b"r", b"f", b"s", b"n", b"e"
MESSAGE = 1 << 16  # most bytes of a message; the longest is a Confinement


@dataclass(frozen=True, slots=True)
class Confinement:
    """The confinement of all children of a server, created once before the first child.

    machine      a key of `syscalls.ARCHITECTURES`
    filter       system-call filter from `syscalls.filter_program`, in hexadecimal
    readable     files and folders that may be read, folders with everything below them
    memory       bytes of address space, in addition to the server's
    cpu_seconds  processor time of one interpreter, in case the trainer cannot end it
    """

    machine: str
    filter: str
    readable: tuple[str, ...]
    memory: int
    cpu_seconds: int
