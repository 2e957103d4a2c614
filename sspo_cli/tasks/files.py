"""Readers of local data files, one for each file type. A reader yields (place, row) pairs; places are for messages.

Text files are not read with `datasets`, because it builds a cache of each file, infers types that change answers (the text
"025" in a column with numbers becomes 25), and does not report the line of an error.
"""

import bz2
import csv
import gzip
import itertools
import json
import lzma
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

from sspo_cli.errors import UserError, border, quantity, reason, shorten

Place = tuple[str, Any]  # position such as "line 3", and the value at this position
COMPRESSED: dict[str, Callable[[Path, str], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
MOST_DIGITS = 4300  # digits of the longest integer that Python reads; a longer integer is left as text
LONGEST_FIELD = 10_000_000  # most characters of a field of a CSV file
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def type_of(file: Path) -> str | None:
    """Return the key of `READERS` for a file's name, such as `.jsonl` for `x.jsonl.gz`, or None if there is no reader."""
    name = file.with_suffix("") if file.suffix in COMPRESSED else file
    is_readable = name.suffix in READERS and (name is file or name.suffix in TEXT)
    return name.suffix if is_readable else None


def name_without_type(file: Path) -> str:
    """Return a file's name without the suffix of its type, such as `.jsonl` or `.csv.gz`."""
    kind = type_of(file)
    return file.name.rpartition(kind)[0] if kind else file.name


def rows_of_file(file: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) for each row of a file; the place, such as `line 3`, is for messages.

    columns  columns to read, if the file's type allows reading single columns; empty: all columns

    Raises UserError if a file or row cannot be read; the message names the file and, if possible, the row.
    """
    kind = type_of(file)
    if kind is None:
        raise UserError(
            f"data file {file} has an unknown type; use {', '.join(READERS)}, or these with .gz, .bz2 or .xz"
        )
    place = ""
    with border(lambda: f"data file {file} cannot be read{f' after {place}' if place else ''}"):
        if not stat.S_ISREG(file.stat().st_mode):
            raise UserError(f"data file {file} is a folder, a pipe or a device, not a file; copy its data to a file")
        for place, values in READERS[kind](file, columns):
            if not isinstance(values, dict):
                value = shorten(json.dumps(values, default=str), 40)
                raise UserError(f"{file}, {place} must be an object, not {value}")
            yield place, values


def names_among(names: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Return the entries of `names`, the columns of a table, that match an entry of `columns`, ignoring case.

    A dotted entry of `columns`, such as `meta.answer`, refers to a field of the nested column `meta` and matches `meta`.
    """
    wanted = {column.partition(".")[0].lower() for column in columns}
    return [name for name in names if name.lower() in wanted]


def _open(file: Path) -> IO[bytes]:
    return cast(IO[bytes], COMPRESSED.get(file.suffix, open)(file, "rb"))


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yield (place, line) for each line of a text file, without a byte-order mark."""
    with _open(file) as stream:
        for number, content in enumerate(stream, start=1):
            if number == 1 and content.startswith(UTF_16):
                raise UserError(f"data file {file} is UTF-16 text; save it as UTF-8")
            try:
                yield f"line {number}", content.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise UserError(f"data file {file} is not UTF-8 text in line {number}; save it as UTF-8") from None


def _json_lines(file: Path, columns: Sequence[str]) -> Iterator[Place]:
    for place, line in _lines(file):
        if line.strip():
            yield place, _parse_json(line, f"{file}, {place}")


def _json(file: Path, columns: Sequence[str]) -> Iterator[Place]:
    """Read an array of objects, an object with one such array (for example `data`), a single object, or JSON lines."""
    text = "".join(line for _, line in _lines(file))
    try:
        content = _load_json(text)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("{"):
            yield from _json_lines(file, columns)
            return
        raise UserError(f"{file}, line {error.lineno} is not valid JSON: {error.msg}") from None
    except RecursionError:
        raise UserError(f"data file {file} cannot be read: it is nested too deeply") from None
    if isinstance(content, dict):
        arrays = [value for value in content.values() if isinstance(value, list) and isinstance((*value, 0)[0], dict)]
        content = arrays[0] if len(arrays) == 1 else [content]
    if not isinstance(content, list):
        raise UserError(f"{file} must hold an array of objects, not {shorten(json.dumps(content), 40)}")
    for number, values in enumerate(content, start=1):
        yield f"row {number}", values


def _parse_json(text: str, where: str) -> Any:
    try:
        return _load_json(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not valid JSON: {error.msg}") from None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply to be read") from None


def _load_json(text: str) -> Any:
    return json.loads(text, parse_float=str, parse_int=_integer)  # an answer of 0.10 must not become 0.1


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) < MOST_DIGITS else digits


def _csv(file: Path, columns: Sequence[str]) -> Iterator[Place]:
    """Read a table with column names in its first line.

    The delimiter is the first of comma, semicolon and tab that the first line contains.
    """
    csv.field_size_limit(LONGEST_FIELD)
    lines = (line for _, line in _lines(file))
    head = next(lines, "")
    delimiter = next((mark for mark in ",;\t" if mark in head), ",")
    table = csv.reader(itertools.chain([head], lines), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    for number in itertools.count():
        try:
            fields = next(table, None)
        except csv.Error as error:
            raise UserError(f"{file}, row {number} is not valid CSV: {reason(error)}") from None
        if fields is None:
            return
        if names is None:
            names = [name.strip() for name in fields]
            if twice := [name for name in names if names.count(name) > 1]:
                raise UserError(f"{file} has two columns named {twice[0]!r}; rename one")
            continue
        if fields and len(fields) != len(names):
            raise UserError(
                f"{file}, row {number} has {quantity(len(fields), 'field')}, but the first line names "
                f"{quantity(len(names), 'column')}; "
                f"quote fields that contain {delimiter!r}"
            )
        if fields:
            yield f"row {number}", dict(zip(names, fields, strict=True))


def _parquet(file: Path, columns: Sequence[str]) -> Iterator[Place]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            present = names_among(table.schema_arrow.names, columns)
            rows = (row for batch in table.iter_batches(1024, columns=present or None) for row in batch.to_pylist())
            for number, values in enumerate(rows, start=1):
                yield f"row {number}", values
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"data file {file} is not valid Parquet: {reason(error)}") from None


def _arrow(file: Path, columns: Sequence[str]) -> Iterator[Place]:
    import datasets

    for number, values in enumerate(datasets.Dataset.from_file(str(file)), start=1):
        yield f"row {number}", values


TEXT = {".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json, ".csv": _csv, ".tsv": _csv}
READERS = {**TEXT, ".parquet": _parquet, ".arrow": _arrow}
