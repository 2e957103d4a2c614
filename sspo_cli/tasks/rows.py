"""Rows of a data set: of a published one through `datasets`, or of local JSON, JSON-lines and Parquet files.

Local files are read here and not through `datasets`: it builds a cache of each, infers types that change answers (the
text "025" beside a number becomes 25), and names no line of a broken file.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sspo_cli.errors import UserError, first_line

SPLITS = ("train", "test", "validation", "dev")


@dataclass(frozen=True, slots=True)
class Published:
    """Where a data set is on the hub.

    splits   our name of a split -> the name that it has there
    columns  those that are read; the others (long solutions) are never decoded. Empty: all
    """

    name: str
    splits: Mapping[str, str]
    columns: tuple[str, ...]
    config: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One row. `where` says to a person where it stands; `number` counts from 0 over all files of the split."""

    values: Mapping[str, Any]
    where: str
    number: int

    def get(self, column: str) -> Any:
        """The value, or None. A dotted name reaches into a nested column."""
        value: Any = self.values
        for key in column.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def text(self, *columns: str) -> str:
        """The first of these columns that is not empty. Raises UserError where there is none."""
        for column in columns:
            value = self.get(column)
            if isinstance(value, str | int | float) and (text := str(value).strip()):
                return text
        names = " or ".join(f"`{column}`" for column in columns)
        raise UserError(f"{self.where} has no text in {names}; its columns are {', '.join(self.values) or 'none'}")


def read_rows(path: str | None, split: str, published: Published, *copies: Published) -> Iterator[Row]:
    """The rows of a split, one after the other. `copies` are the same data set by other names; of equal ones all are read.

    Raises UserError for an unknown split and for a source that cannot be reached or read.
    """
    if path is None:
        if split not in published.splits:
            raise UserError(f"{published.name} has no split {split}; it has {', '.join(published.splits)}")
        yield from _hub_rows(published.name, published.config, published.splits[split], published.columns)
    elif (local := Path(path).expanduser()).exists():
        yield from _local_rows(local, split, published)
    elif local.suffix in READERS or local.is_absolute() or path.startswith((".", "~")):
        raise UserError(f"data file {path} does not exist")
    else:
        known = [each for each in (published, *copies) if each.name == path]
        number = itertools.count()
        for each in known or [Published(path, {}, published.columns)]:
            for row in _hub_rows(path, each.config, each.splits.get(split, split), each.columns):
                yield replace(row, number=next(number))


def _hub_rows(name: str, config: str | None, split: str, columns: tuple[str, ...]) -> Iterator[Row]:
    import datasets  # takes a second, and the embedded task needs none of it

    try:
        table = datasets.load_dataset(name, config, split=split)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        reason = first_line(error)
        raise UserError(
            f"split {split} of {name} cannot be loaded from the Hugging Face hub ({reason}); "
            "if the hub cannot be reached, give a local copy: the task's path=…, or -b NAME=PATH"
        ) from None
    present = [column for column in columns if column in table.column_names]
    for number, values in enumerate(table.select_columns(present) if present else table):
        yield Row(values, f"{name}, {split} row {number + 1}", number)


def _local_rows(path: Path, split: str, published: Published) -> Iterator[Row]:
    """A file is read whatever the split; of a folder, the files that are named after the split."""
    files = _files_of_split(path, split, published) if path.is_dir() else [path]
    number = itertools.count()
    for file in files:
        if file.suffix not in READERS:
            raise UserError(f"data file {file} has an unknown type; use {', '.join(READERS)}")
        try:
            for place, values in READERS[file.suffix](file, published.columns):
                if not isinstance(values, dict):
                    raise UserError(f"{file}, {place} must be an object, not {json.dumps(values)[:40]}")
                yield Row(values, f"{file}, {place}", next(number))
        except OSError as error:
            raise UserError(f"data file {file} cannot be read: {error.strerror or error}") from None
        except UnicodeDecodeError:
            raise UserError(f"data file {file} is not UTF-8 text") from None


def _files_of_split(folder: Path, split: str, published: Published) -> list[Path]:
    """`<split>.jsonl`, `<split>-00000-of-00002.parquet` and the like, in the folder or where a copy from the hub has them.

    A folder without any file named after a split is one data set; all of its files are read.
    """
    places = [folder, folder / "data", folder / (published.config or "")]
    for place in places:
        files = sorted(file for file in place.glob("*") if file.suffix in READERS)
        if not files:
            continue
        of_split = {name: [file for file in files if file.stem.split("-")[0] == name] for name in (split, *SPLITS)}
        if of_split[split]:
            return of_split[split]
        if others := [name for name in SPLITS if of_split[name]]:
            raise UserError(f"data folder {place} has no split {split}; it has {', '.join(others)}")
        return files
    raise UserError(f"data folder {folder} holds no {', '.join(READERS)} files")


def _json_lines(file: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"line {number}", _parse_json(line, f"{file}, line {number}")


def _json(file: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """An array of objects; otherwise the lines of a misnamed JSON-lines file, which many published ones are."""
    text = file.read_text(encoding="utf-8")
    if not text.lstrip().startswith("["):
        yield from _json_lines(file, columns)
        return
    for number, values in enumerate(_parse_json(text, str(file)), start=1):
        yield f"row {number}", values


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text, parse_float=str)  # an answer of 0.10 stays as written
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not valid JSON: {error.msg}") from None


def _parquet(file: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            present = [column for column in columns if column in table.schema_arrow.names]
            rows = (row for batch in table.iter_batches(1024, columns=present or None) for row in batch.to_pylist())
            for number, values in enumerate(rows, start=1):
                yield f"row {number}", values
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"data file {file} is not valid Parquet: {first_line(error)}") from None


READERS = {".jsonl": _json_lines, ".json": _json, ".parquet": _parquet}
