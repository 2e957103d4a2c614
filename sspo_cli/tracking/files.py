"""Writing that keeps files intact in a crash: whole files are replaced atomically, and JSON lines are single writes."""

import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from sspo_cli.errors import UserError
from sspo_cli.tracking.shapes import ROW, check_shape

TEMPORARY = re.compile(r"\..+\.\d+\.tmp")  # names of the temporary files of write_bytes_atomic
ABANDONED = 86_400.0  # age in seconds at which the writer of a temporary file is assumed to be dead
LONGEST_ROW = 4096  # assumed maximum size of a row in bytes; a row of metrics has about 1,300


def write_text_atomic(path: Path, text: str) -> None:
    """Replace the content of `path` with `text` in UTF-8, atomically.

    Raises UserError if the file cannot be written, for example because the disk is full. In this case, the old file is
    unchanged.
    """
    write_bytes_atomic(path, _encode(text))


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Replace the content of `path` atomically. Raises UserError, and leaves the old file unchanged, if this fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # os.replace cannot cross file systems
    with explain_os_errors("write", path):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # otherwise a power failure may leave the new name on an empty file
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, older_than: float = 0.0) -> None:
    """Remove temporary files of killed writers if the files are at least `older_than` seconds old.

    Pass 0 only if no other process writes to the folder. Otherwise, a temporary file may still be in use.
    """
    for path in folder.glob(".*.tmp"):
        with suppress(FileNotFoundError):
            if TEMPORARY.fullmatch(path.name) and path.is_file() and time.time() - path.stat().st_mtime >= older_than:
                path.unlink()


def write_json_atomic(path: Path, value: Any) -> None:
    """Replace the content of `path` with `value` as indented JSON. Raises UserError if the file cannot be written."""
    write_text_atomic(path, json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n")


def write_jsonl_atomic(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace the content of `path` with `rows` as JSON lines. Raises UserError if the file cannot be written."""
    write_text_atomic(path, "".join(map(_line, rows)))


def read_json(path: Path, shape: TypeAdapter[Any] | None = None) -> Any:
    """Read a JSON file. Raises UserError if it is missing, unreadable or malformed, or if its value does not match `shape`."""
    with explain_os_errors("read", path):
        text = path.read_bytes()
    value = parse_json(text, str(path))
    return check_shape(value, shape, str(path)) if shape else value


def parse_json(text: bytes, where: str) -> Any:
    """Parse JSON.

    Raises UserError if `text` is invalid JSON, nested too deeply, or not Unicode. The message begins with `where`.
    """
    try:
        value = json.loads(text)
        if b"\\ud" in text.lower():  # perhaps a lone surrogate, which cannot be printed
            json.dumps(value, ensure_ascii=False).encode()
    except ValueError:
        raise UserError(f"{where} is not valid JSON") from None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply to be read") from None
    return value


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Append `row` as a line of JSON with a single write, so that a crash can truncate only this line.

    Raises UserError if the file cannot be written.
    """
    with explain_os_errors("write", path), open(path, "ab") as file:
        file.write(_encode(_line(row)))


def read_jsonl(path: Path, shape: TypeAdapter[Any] = ROW) -> list[dict[str, Any]]:
    """Read all complete rows of a JSON-lines file; return an empty list if there is no file.

    A last line without a newline, which a crash has truncated, is ignored. Raises UserError if the file cannot be read, or if
    a line is damaged or does not match `shape`.
    """
    if not path.exists():
        return []
    with explain_os_errors("read", path):
        *lines, _torn = path.read_bytes().split(b"\n")  # a complete row ends in a newline
    names = (f"{path}, line {number}" for number in range(1, len(lines) + 1))
    return [check_shape(parse_json(line, name), shape, name) for line, name in zip(lines, names, strict=True)]


def last_jsonl_rows(path: Path, count: int) -> list[dict[str, Any]]:
    """Read at most the last `count` complete rows, without reading the start of a long file; empty if there is no file.

    Raises UserError if the file cannot be read or one of these rows is damaged.
    """
    if not path.exists():
        return []
    with explain_os_errors("read", path), open(path, "rb") as file:
        start = max(0, os.path.getsize(path) - count * LONGEST_ROW)
        file.seek(start)
        lines = file.read().split(b"\n")[1 if start else 0 : -1]  # without partial lines at the ends
    return [check_shape(parse_json(line, f"{path}, at its end"), ROW, str(path)) for line in lines[-count:]]


def truncate_jsonl(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Remove the rows for which `keep(row)` is false, and a truncated last line, by an atomic replacement of the file.

    Raises UserError in the same cases as `read_jsonl`, and if the file cannot be written.
    """
    if path.exists():
        write_jsonl_atomic(path, [row for row in read_jsonl(path) if keep(row)])


def finite(value: Any) -> Any:
    """Replace NaN and infinity with None in nested values, because JSON cannot represent NaN and infinity."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {key: finite(item) for key, item in value.items()}
        case list() | tuple():
            return [finite(item) for item in value]
    return value


@contextmanager
def explain_os_errors(verb: str, path: Path) -> Iterator[None]:
    """Convert an OSError of the block to a UserError: `cannot write runs/a/status.json: No space left on device`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot {verb} {path}: {error.strerror or error}") from error


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(finite(row), ensure_ascii=False) + "\n"


def _encode(text: str) -> bytes:
    """Encode as UTF-8. A lone surrogate, which a tokenizer can produce, becomes `?` instead of raising an exception."""
    return text.encode("utf-8", errors="replace")
