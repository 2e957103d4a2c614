"""The exception for users, helpers for its messages, and the conversion of other exceptions into it."""

import difflib
import errno
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

from sspo_cli.interruption import Interrupted

LONGEST_WORD = 240  # most characters of a word in a message
LONGEST_MESSAGE = 1600
LONGEST_NAME = 200  # bytes; file systems allow 255, and the names of temporary and lock files are longer
LONGEST_PATH = 1000
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
LONG_WORD = re.compile(rf"\S{{{LONGEST_WORD + 1},}}")
SAY_WHAT_FAILED = (OSError, ValueError, RuntimeError, ImportError)  # for other exceptions, the type is reported, too


class UserError(Exception):
    """An error in the user's input. The message is one sentence: what is wrong, where, and what to do instead.

    The message is reduced to one line, and long values in it are shortened.
    """

    def __init__(self, message: str) -> None:
        line = CONTROL.sub(" ", message).encode("utf-8", "backslashreplace").decode()  # lone surrogates as \udcff
        line = LONG_WORD.sub(lambda word: shorten(word[0], LONGEST_WORD // 2), line)
        super().__init__(shorten(line, LONGEST_MESSAGE))


@contextmanager
def border(failure: str | Callable[[], str], *passing: type[BaseException]) -> Iterator[None]:
    """Turn every exception in the block into a UserError with the message `failure` and the reason.

    failure  beginning of the message, or a function that returns it
    passing  exceptions that are not converted, in addition to UserError, Interrupted and those that end the process

    Broken input can make a library raise anything: KeyError, ZeroDivisionError, a panic of Rust code.
    """
    try:
        yield
    except BaseException as error:
        is_broken_input = isinstance(error, Exception) or type(error).__name__ == "PanicException"
        if not is_broken_input or isinstance(error, (UserError, Interrupted, *passing)):
            raise
        raise UserError(f"{failure if isinstance(failure, str) else failure()}: {reason(error)}") from None


def reason(error: BaseException) -> str:
    """Return the first line of an error's message, preceded by its type if the message alone is not clear."""
    line, name = own_names(first_line(error)), type(error).__name__
    if name == "UnpicklingError":  # torch's own message explains how to execute code in the file, which sspo never does
        return "it is damaged or holds code, which is never run"
    return line if isinstance(error, SAY_WHAT_FAILED) or line == name else f"{name}: {line}"


# Names of this program's options in messages of libraries, in the order of replacement.
FOREIGN = (
    (r"FlashAttention2? has been toggled on", "model.attention=flash_attention_2 was asked for"),
    (r"(?:the argument )?[`'\"]*attn_implementation\s*=\s*[`'\"]*(\w+)[`'\"]*", r"model.attention=\1"),
    (r"[`'\"]*\battn_implementation\b[`'\"]*", "model.attention"),
    (r"[`'\"]*\b(?:torch_)?dtype\s*=\s*[`'\"]*(?:torch\.)?(\w+)[`'\"]*", r"model.dtype=\1"),
    (r"[`'\"]*\btorch_dtype\b[`'\"]*", "model.dtype"),
    (r"[`'\"]*\btrust_remote_code(?:\s*=\s*True)?\b[`'\"]*", "Python code of the model, which sspo never runs"),
    (r"[`'\"-]*\bgpu[_-]memory[_-]utilization\b[`'\"]*", "rollout.vllm.gpu_memory_utilization"),
    (r"[`'\"-]*\bkv[_-]cache[_-]memory[_-]bytes\b[`'\"]*", "rollout.vllm.kv_cache_gib"),
    (r"[`'\"-]*\bmax[_-]num[_-]seqs\b[`'\"]*", "rollout.max_rows"),
    (r"[`'\"-]*\bmax[_-]model[_-]len\b[`'\"]*", "rollout.max_new_tokens"),
    (r"[`'\"-]*\benforce[_-]eager\b[`'\"]*", "rollout.vllm.enforce_eager"),
)


def own_names(message: str) -> str:
    """Replace a library's arguments in its message by the options of this program."""
    for foreign, own in FOREIGN:
        message = re.sub(foreign, own, message)
    return message


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's type if the message is empty."""
    message = str(error).strip()
    return message.splitlines()[0] if message else type(error).__name__


# Messages of torch, numpy and the C++ library that mean MemoryError, also for impossible sizes.
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
    if isinstance(error, OverflowError):  # from Python, for an integer that is too large for a size
        return "int too large" in str(error) or "index-sized" in str(error)
    is_of_a_library = isinstance(error, RuntimeError | ValueError | OSError)
    return is_of_a_library and any(phrase in str(error).lower() for phrase in _MEMORY_PHRASES)


def says_disk_is_full(error: BaseException | None) -> bool:
    """Report whether an exception or its cause means that the disk or a quota is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
            return True
        error = error.__cause__
    return False


def shorten(text: str, limit: int) -> str:
    """Shorten a text to `limit` characters by leaving out its middle."""
    if len(text) <= limit:
        return text
    tail = limit // 3
    return f"{text[: limit - tail - 1]}…{text[-tail:]}"


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return the end of a message about a name that is not in `known`: the most similar known name, or all known names."""
    known = list(known)
    near = difflib.get_close_matches(str(name).lower()[:LONGEST_WORD], known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; choose from {', '.join(known)}"


def check_name(option: str, name: str) -> None:
    """Raise UserError if `name` cannot be a sub-folder because it is empty, too long or outside of the parent folder."""
    path = PurePath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise UserError(
            f"{option} {name or repr(name)} does not name a folder inside the runs folder; see also --runs-dir"
        )
    if max(len(part.encode(errors="replace")) for part in path.parts) > LONGEST_NAME or len(name) > LONGEST_PATH:
        raise UserError(f"{option} {name} is too long for the name of a folder; use at most {LONGEST_NAME} characters")
    if not name.isprintable():  # for example a lone surrogate, from bytes that are not text
        raise UserError(f"{option} {name!r} has characters that cannot be printed")


def quantity(count: int, noun: str) -> str:
    """Format a number with its noun: `1 problem`, `3 problems`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def command_line(*words: str | Path) -> str:
    """Format a command for pasting into a shell, in backticks."""
    return f"`{shlex.join(map(str, words))}`"
