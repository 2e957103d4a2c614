"""The one exception that a user sees, what its sentences are made of, and the borders that turn other exceptions into it."""

import difflib
import errno
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

from sspo_cli.interruption import Interrupted

LONGEST_WORD = 240  # characters of a message without a space between them
LONGEST_MESSAGE = 1600
LONGEST_NAME = 200  # bytes: file systems allow 255, and temporary and lock files add to it
LONGEST_PATH = 1000
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
LONG_WORD = re.compile(rf"\S{{{LONGEST_WORD + 1},}}")
SAY_WHAT_FAILED = (OSError, ValueError, RuntimeError, ImportError)  # other exceptions are named with their type


class UserError(Exception):
    """Says that what the user gave cannot be used. The message is one sentence: what is wrong, where, and what to do instead.

    It is kept on one line, and long values in it are shortened.
    """

    def __init__(self, message: str) -> None:
        line = CONTROL.sub(" ", message).encode("utf-8", "backslashreplace").decode()  # half a surrogate pair as \udcff
        line = LONG_WORD.sub(lambda word: shorten(word[0], LONGEST_WORD // 2), line)
        super().__init__(shorten(line, LONGEST_MESSAGE))


@contextmanager
def border(failure: str | Callable[[], str], *passing: type[BaseException]) -> Iterator[None]:
    """Turn every exception of the libraries behind a kind of input into a UserError: `failure`, and the reason.

    `failure` may be a function, called when something has failed.

    Broken input makes a library raise anything: a KeyError, a ZeroDivisionError, a panic of Rust code. A UserError,
    Interrupted and what ends the process pass unchanged, and so do the exceptions `passing`.
    """
    try:
        yield
    except BaseException as error:
        is_broken_input = isinstance(error, Exception) or type(error).__name__ == "PanicException"
        if not is_broken_input or isinstance(error, (UserError, Interrupted, *passing)):
            raise
        raise UserError(f"{failure if isinstance(failure, str) else failure()}: {reason(error)}") from None


def reason(error: BaseException) -> str:
    """Return the first line of an error's message, after its type if the message alone does not say what went wrong."""
    line, name = own_names(first_line(error)), type(error).__name__
    if name == "UnpicklingError":  # torch's message explains how to run the code
        return "it is damaged or holds code, which is never run"
    return line if isinstance(error, SAY_WHAT_FAILED) or line == name else f"{name}: {line}"


# What the libraries call an option of this program, in the order of replacement.
FOREIGN = (
    (r"FlashAttention2? has been toggled on", "model.attention=flash_attention_2 was asked for"),
    (r"(?:the argument )?[`'\"]*attn_implementation\s*=\s*[`'\"]*(\w+)[`'\"]*", r"model.attention=\1"),
    (r"[`'\"]*\battn_implementation\b[`'\"]*", "model.attention"),
    (r"[`'\"]*\b(?:torch_)?dtype\s*=\s*[`'\"]*(?:torch\.)?(\w+)[`'\"]*", r"model.dtype=\1"),
    (r"[`'\"]*\btorch_dtype\b[`'\"]*", "model.dtype"),
    (r"[`'\"]*\btrust_remote_code(?:\s*=\s*True)?\b[`'\"]*", "code of the model's own, which sspo never runs"),
    (r"[`'\"-]*\bgpu[_-]memory[_-]utilization\b[`'\"]*", "rollout.vllm.gpu_memory_utilization"),
    (r"[`'\"-]*\bkv[_-]cache[_-]memory[_-]bytes\b[`'\"]*", "rollout.vllm.kv_cache_gib"),
    (r"[`'\"-]*\bmax[_-]num[_-]seqs\b[`'\"]*", "rollout.max_rows"),
    (r"[`'\"-]*\bmax[_-]model[_-]len\b[`'\"]*", "rollout.max_new_tokens"),
    (r"[`'\"-]*\benforce[_-]eager\b[`'\"]*", "rollout.vllm.enforce_eager"),
)


def own_names(message: str) -> str:
    """Return a library's message with the options of this program in the place of the library's arguments."""
    for foreign, own in FOREIGN:
        message = re.sub(foreign, own, message)
    return message


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


def shorten(text: str, limit: int) -> str:
    """Leave out the middle of a text that is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    tail = limit // 3
    return f"{text[: limit - tail - 1]}…{text[-tail:]}"


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return the end of such a sentence if `name` should have been one of `known`."""
    known = list(known)
    near = difflib.get_close_matches(str(name).lower()[:LONGEST_WORD], known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; choose from {', '.join(known)}"


def check_name(option: str, name: str) -> None:
    """Raise UserError for a name that is no folder inside of another one: empty, too long, or leading out of it."""
    path = PurePath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise UserError(
            f"{option} {name or repr(name)} does not name a folder inside of the runs folder; see also --runs-dir"
        )
    if max(len(part.encode(errors="replace")) for part in path.parts) > LONGEST_NAME or len(name) > LONGEST_PATH:
        raise UserError(f"{option} {name} is too long for the name of a folder; use at most {LONGEST_NAME} characters")
    if not name.isprintable():  # half a surrogate pair is what bytes that are no text become
        raise UserError(f"{option} {name!r} has characters that cannot be printed")


def command_line(*words: str | Path) -> str:
    """Return a command as it can be pasted into a shell, in backticks."""
    return f"`{shlex.join(map(str, words))}`"
