"""The one exception that a user sees, and what its sentences are made of."""

import difflib
import errno
from collections.abc import Iterable


class UserError(Exception):
    """Says that what the user gave cannot be used. The message is one sentence: what is wrong, where, and what to do instead."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return the end of such a sentence if `name` should have been one of `known`."""
    known = list(known)
    near = difflib.get_close_matches(str(name).lower(), known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; choose from {', '.join(known)}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    message = str(error).strip()
    return message.splitlines()[0] if message else type(error).__name__


# What torch, numpy and the C++ library say instead of raising MemoryError, also to sizes beyond any memory.
_MEMORY_PHRASES = (
    "allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "start new thread",
    "size calculation overflowed",
    "multiplication overflow",
    "array is too big",
    "maximum allowed dimension exceeded",
    "invalid buffer size",
)


def says_memory_is_full(error: BaseException) -> bool:
    """Report whether an exception of any library means that there is too little memory, on the CPU or a GPU."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if isinstance(error, OverflowError):  # of Python: an integer that is no size
        return "int too large" in str(error) or "index-sized" in str(error)
    is_of_a_library = isinstance(error, RuntimeError | ValueError | OSError)
    return is_of_a_library and any(phrase in str(error).lower() for phrase in _MEMORY_PHRASES)


def says_disk_is_full(error: BaseException | None) -> bool:
    """Report whether an exception or one that caused it means that there is no room on the disk, or none within a quota."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
            return True
        error = error.__cause__
    return False
