"""Rows of a data set, from the hub, from a folder saved by `datasets`, or from local files."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

from sspo_cli.errors import UserError, border, first_line, shorten
from sspo_cli.rewards import check_gold, read_gold
from sspo_cli.tasks.files import READERS, names_among, rows_of_file, type_of
from sspo_cli.tasks.folders import choose_split, files_of_split

# Columns of questions, answers and ids, in the order in which they are tried; case is ignored.
QUESTIONS = ("question", "problem", "prompt", "messages", "query", "instruction", "input")
ANSWERS = (
    *("answer", "final_answer", "expected_answer", "ground_truth", "reward_model.ground_truth", "gold", "target"),
    *("solution", "output"),
)
IDS = ("id", "unique_id", "extra_info.index")
CHOICES = ("choices", "options")
SAVED = ("dataset_dict.json", "state.json")  # files that `save_to_disk` writes, for several splits and for one
_CHAT_AS_TEXT = re.compile(r"""\[\s*\{\s*["'](?:role|content)["']\s*:""")
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Published:
    """A data set on the hub.

    splits   sspo's name of a split -> its name on the hub
    columns  columns to read; empty: all columns. Other columns, such as long solutions, are never decoded.
    config   the configuration to read, or None
    """

    name: str
    splits: Mapping[str, str]
    columns: tuple[str, ...]
    config: str | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """The differences between a source and the published data set.

    config   the configuration to read; None if the user chose none
    columns  "question", "answer", "id" or "demonstration" -> its column in the source. A dotted name refers to a field of
             a nested column.
    """

    config: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


PLAIN = Layout()


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a data set.

    values   column -> value
    where    location of the row, for messages
    number   the row's index from 0 over all files of the split
    columns  the columns that the user chose, as in `Layout`
    """

    values: Mapping[str, Any]
    where: str
    number: int
    columns: Mapping[str, str] = field(default_factory=dict)

    def get(self, column: str) -> Any:
        """Return the value of a column, or None if the row does not have the column.

        A dotted name refers to a field of a nested column. Case is ignored if no column has exactly this name.
        """
        value: Any = self.values
        for key in column.split("."):
            if not isinstance(value, Mapping):
                return None
            name = key if key in value else next((name for name in value if str(name).lower() == key.lower()), None)
            value = value.get(name)
        return value

    def text(self, *columns: str) -> str:
        """Return the value of the first non-empty column of `columns`, as text. Raises UserError if all are empty."""
        for column in columns:
            if text := self._as_text(self.get(column), column):
                return text
        raise self._without("text", columns)

    def question(self, *columns: str) -> str:
        """Return the question: the text, or the only user turn, in the first non-empty column of `columns`.

        If it is the column `instruction`, the column `input` is appended to the question, as in Alpaca's prompt.

        Raises UserError if there is no question, if it is a chat with several user turns or a chat written as text, or if the
        row has multiple-choice options that are not in the question.
        """
        columns = self._columns("question", columns)
        for column in columns:
            value = self.get(column)
            text = self._user_turn(value, column) if isinstance(value, list) else self._as_text(value, column)
            if text and _CHAT_AS_TEXT.match(text):
                raise UserError(
                    f"{self.where} has a chat written as text in `{column}`; give a list of turns, or only the question"
                )
            if text and "question" not in self.columns:
                self._check_choices(text)
                about = self._as_text(self.get("input"), "input") if column == "instruction" else None
                text = f"{text}\n\n{about}" if about else text
            if text:
                return text
        raise self._without("text", columns)

    def _check_choices(self, question: str) -> None:
        for column in CHOICES:
            value = self.get(column)
            texts = list(value.values()) if isinstance(value, Mapping) else value
            if isinstance(texts, list) and texts and not all(str(text) in question for text in texts):
                raise UserError(
                    f"{self.where} has multiple-choice options in `{column}` that are not in its question; add them to the "
                    "question, or set the task's option columns.question to use the question without them"
                )

    def gold(self, *columns: str) -> str:
        """Return the gold answer in the first non-empty column of `columns`, as read by `read_gold`.

        Raises UserError if there is no gold answer, if there are several, and if no answer can match the gold.
        """
        columns = self._columns("answer", columns)
        for column in columns:
            value = self.get(column)
            if isinstance(value, list):
                if len(value) > 1:
                    raise UserError(f"{self.where} has {len(value)} gold answers in `{column}`; give one")
                value = value[0] if value else None
            if text := self._as_text(value, column):
                gold = read_gold(text)
                if reason := check_gold(gold):
                    raise UserError(
                        f"{self.where}: no answer can match `{column}` = {shorten(repr(text), 80)}, {reason}"
                    )
                return gold
        raise self._without("gold answer", columns)

    def identity(self, *columns: str) -> str | None:
        """Return the id in the first non-empty column of `columns`, as text, or None if all are empty."""
        texts = (self._as_text(self.get(column), column) for column in self._columns("id", columns))
        return next(filter(None, texts), None)

    def _columns(self, role: str, columns: tuple[str, ...]) -> tuple[str, ...]:
        return (self.columns[role],) if role in self.columns else columns

    def _as_text(self, value: Any, column: str) -> str | None:
        """Return a string or number as stripped text, or None for any other value, such as NaN or a boolean."""
        if not isinstance(value, str | int | float | Decimal) or isinstance(value, bool):
            return None
        if not isinstance(value, str | int) and not math.isfinite(value):
            return None
        text = str(value).strip()
        if LONE_SURROGATE.search(text):
            raise UserError(f"{self.where} has a lone surrogate in `{column}`, which is not valid Unicode text")
        return text

    def _user_turn(self, turns: Sequence[Any], column: str) -> str | None:
        """Return the text of a chat's only user turn, or None if the chat is empty.

        A preceding system turn is dropped, because the run's prompt has one system turn for all data sets. Raises UserError
        if the chat has other turns.
        """
        said = [(turn.get("role"), turn.get("content")) for turn in turns if isinstance(turn, Mapping)]
        roles = [str(role) for role, _ in said]
        if not turns:
            return None
        if len(said) < len(turns) or roles not in (["user"], ["system", "user"]):
            found = f"the turns {', '.join(roles)}" if len(said) == len(turns) else "a list that is not a chat"
            raise UserError(
                f"{self.where} has {shorten(found, 120)} in `{column}`; a question must be text, or a chat with one user turn "
                "and optionally a system turn before it"
            )
        return self._as_text(said[-1][1], column)

    def _without(self, what: str, columns: Sequence[str]) -> UserError:
        names = ", ".join(f"`{column}`" for column in columns)
        values = [f"{column} = {value!r}" for column in columns if (value := self.get(column)) is not None]
        found = f" ({shorten(', '.join(values), 120)})" if values else ""
        return UserError(
            f"{self.where} has no {what} in {names}{found}; its columns are {', '.join(map(str, self.values)) or 'none'}; if "
            "another column has it, set the task's option `columns`"
        )


def read_rows(
    path: str | None, split: str, published: Published, *copies: Published, layout: Layout = PLAIN
) -> Iterator[Row]:
    """Yield the rows of a split.

    copies  further entries of the same data set on the hub. Entries with equal names are configurations of one data set: if
            `path` is this name, all of them are read unless `layout` chooses a configuration

    Raises UserError for an unknown split and for a source that cannot be reached or read.
    """
    number = count()
    for where, values in _places(path, split, layout, (published, *copies)):
        yield Row(values, where, next(number), layout.columns)


def read_folder(path: str) -> Iterator[Row]:
    """Yield the rows of a file, or of every data file in a folder, regardless of their names."""
    with border(f"data folder {path} cannot be read"):
        place = Path(path).expanduser()
        files = sorted(file for file in place.iterdir() if type_of(file)) if place.is_dir() else [place]
    if not files:
        raise UserError(f"data folder {path} holds no {', '.join(READERS)} files")
    number = count()
    for file in files:
        for where, values in rows_of_file(file, ()):
            yield Row(values, f"{file}, {where}", next(number))


def _places(
    path: str | None, split: str, layout: Layout, sources: Sequence[Published]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (place, values) for each row; the place is for messages."""
    published = sources[0]
    if path is None:
        if split not in published.splits:
            raise UserError(f"{published.name} has no split {split}; it has {', '.join(published.splits)}")
        yield from _hub_rows(published, split, layout, "")
    elif (local := _local(path)) is None:
        known = [source for source in sources if source.name == path]
        for source in known[: 1 if layout.config else None] or [Published(path, {}, published.columns)]:
            yield from _hub_rows(source, split, layout, ", which is not a local file or folder,")
    elif local.is_dir() and any((local / name).is_file() for name in SAVED):
        yield from _saved_rows(local, split, layout, published)
    else:
        files = [local]
        if local.is_dir():
            splits = {ours: theirs for source in sources for ours, theirs in source.splits.items()}
            configs = [source.config for source in sources if source.config]
            with border(f"data folder {local} cannot be read"):
                files = files_of_split(local, split, layout.config, configs, splits)
        elif layout.config:
            raise UserError(
                f"data file {local} has no configuration {layout.config}; config=… is for folders and the hub"
            )
        for file in files:
            for place, values in rows_of_file(file, _columns_to_read(published, layout)):
                yield f"{file}, {place}", values


def _local(path: str) -> Path | None:
    """Return `path` as a local file or folder, or None if it can only be the name of a data set on the hub.

    Raises UserError if the path is empty or its file does not exist.
    """
    if not path.strip():
        raise UserError(
            "the path of a data set is empty; name a file, a folder or a data set on the hub, or leave it out"
        )
    with border(f"data file {path} cannot be read"):
        local = Path(path).expanduser()
        if local.exists() or "\0" in path:
            return local
        if type_of(local) or local.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1:
            raise UserError(f"data file {path} does not exist")
    return None


def _columns_to_read(published: Published, layout: Layout) -> tuple[str, ...]:
    return (*published.columns, *layout.columns.values()) if published.columns else ()


def _hub_rows(source: Published, split: str, layout: Layout, about: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import datasets  # here, because it takes a second and the embedded tasks do not need it

    name, config, split = source.name, layout.config or source.config, source.splits.get(split, split)
    try:
        table = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # from the hub, the network or the downloaded files
        raise UserError(
            f"split {split} of {name}{about} cannot be loaded from the Hugging Face hub ({first_line(error)}); if the hub cannot "
            "be reached, use a local copy: set the task's path=…, or for a benchmark -b NAME=PATH; to read another part, set "
            "split=… or config=…"
        ) from None
    yield from _table_rows(table, f"{name}, {split}", _columns_to_read(source, layout))


def _saved_rows(
    folder: Path, split: str, layout: Layout, published: Published
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (place, values) for each row of a folder that `save_to_disk` wrote."""
    import datasets

    if layout.config:
        raise UserError(f"data folder {folder}, as saved by `save_to_disk`, has no configuration {layout.config}")
    with border(f"data folder {folder}, as saved by `save_to_disk`, cannot be read"):
        tables = datasets.load_from_disk(str(folder))
    if isinstance(tables, Mapping):
        split = choose_split(folder, split, tables, published.splits)
        tables = tables[split]
    yield from _table_rows(tables, f"{folder}, {split}", _columns_to_read(published, layout))


def _table_rows(table: Any, where: str, columns: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    number = 0
    with border(lambda: f"{where} row {number + 1} cannot be read"):
        present = names_among(table.column_names, columns)
        for number, values in enumerate(table.select_columns(present) if present else table, start=1):
            yield f"{where} row {number}", values
