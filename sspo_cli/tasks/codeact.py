"""Code-acting tasks: the rows of CodeActInstruct whose answers can be checked, MINT and WikiTableQuestions.

CodeActInstruct has conversations but no gold answers. A folder must therefore hold the following rows, in any number of
JSON-lines or Parquet files:

    {id, conversations}                                    CodeActInstruct; read from the hub if not in the folder
    {task_id, prompt or problem, reference or solution}    MATH's training problems, joined by the problem's text
    {id, gold}                                             gold answer of one row of CodeActInstruct
    {task_id: nt-…, prompt, reference_list, table_id, columns, rows, split}    WikiTableQuestions with its tables
    {task_name, task_id, prompt, reference, extra}         MINT-Bench

Rows without a gold answer are left out and counted in a warning. So are rows whose programs need something that is not
available here: HotpotQA's Wikipedia, ALFWorld's simulator, the tests of APPS and HumanEval.
"""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sspo_cli.errors import UserError
from sspo_cli.tasks.rows import Published, Row, read_folder, read_rows
from sspo_cli.types import Problem

PUBLISHED = Published(
    "xingyaoww/code-act", splits={"train": "codeact", "test": "codeact"}, columns=("id", "conversations")
)
SPLITS = ("train", "test")
ENVIRONMENT = "codeact"
MATH = (
    *("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra"),
    "precalculus",
)
TABLES = "wiki_table_questions"
# Type of MINT -> check, for the types whose answers can be checked by comparing text.
MINT = {"math": "within-5", "gsm8k": "within-5", "theoremqa": "theoremqa", "mmlu": "choice"}
UNSEEN_TABLES = "pristine-unseen-tables"  # WikiTableQuestions' official test split

_STOP = re.compile(r"</(?:execute|solution)>")
_ACTION = re.compile(r"<(execute|solution)>.*?</\1>", re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
_TOOLS = re.compile(r"\bwikipedia_search\s*\(")  # a tool of recorded system prompts that is not available here
# JSON decimals are read as text, so columns in which every value is a number are converted; other columns are not changed.
_FRAME = """\
import json
import pandas as pd
df = pd.DataFrame(json.loads({rows!r}), columns=json.loads({columns!r}))
for _column in range(df.shape[1]):
    try:
        df.isetitem(_column, pd.to_numeric(df.iloc[:, _column]))
    except (ValueError, TypeError):
        pass
"""
_DATABASE = """\
import sqlite3
conn = sqlite3.connect(":memory:")
df.to_sql("data_table", conn, index=False)
del df, json, pd, sqlite3, _column
"""
_FRAME_ALONE = "del json, pd, _column\n"

log = logging.getLogger(__name__)


def problems(path: str | None, split: str) -> Iterator[Problem]:
    """Load the rows of CodeActInstruct that have a gold answer, with the teacher's episode if it is usable.

    Train and test share no task: an eighth of the tasks is test, and all questions about a table are in the same split. A
    task occurs once in test, and in train once for each teacher that solved it. Problems of MINT in the same folder are
    excluded from training.

    Raises UserError in the same cases as `read_rows`, if there is no path, and if the split is unknown.
    """
    rows = _folder(path, split, "codeact")
    conversations = [row for row in rows if row.get("conversations") is not None]
    conversations = conversations or list(read_rows(None, split, PUBLISHED))
    golds = _Golds(rows)
    skipped: Counter[str] = Counter()
    tasks: set[str] = set()
    for row in conversations:
        problem, key = _from_conversation(row, golds, skipped)
        if problem is None or split_of(key) != split:
            continue
        if split == "test" and problem.question in tasks:
            continue
        tasks.add(problem.question)
        if split == "test" or plain(problem.question) not in golds.benchmark:
            yield problem
    _report("codeact", skipped)


def more_problems(path: str | None, split: str) -> Iterator[Problem]:
    """Load the tasks that CodeActInstruct was made from, including those that no teacher solved.

    These are the training questions of MATH and WikiTableQuestions in a folder. They have no teachers' episodes, and each
    task is in the same split as in `problems`.
    """
    rows = _folder(path, split, "codeact-tasks")
    golds = _Golds(rows)
    for row in rows:
        problem, key = golds.task(row)
        if problem and split_of(key) == split and plain(problem.question) not in golds.benchmark:
            yield replace(problem, task="codeact-tasks")


def mint_problems(path: str | None, split: str) -> Iterator[Problem]:
    """Load MINT-Bench's problems of the types math, gsm8k, theoremqa and mmlu.

    Each id begins with the type. Problems of other types are left out and counted in a warning.
    """
    skipped: Counter[str] = Counter()
    for row in _folder(path, split, "mint"):
        name = str(row.get("task_name"))
        if not _is_mint(row):
            continue
        if name not in MINT:
            skipped[name] += 1
            continue
        question, answer = f"Task:\n{row.text('prompt').strip()}", _reference(row)
        yield Problem(
            f"{name}/{row.get('task_id')}",
            question,
            answer,
            "mint",
            environment=ENVIRONMENT,
            check=MINT[name],
            part=name,
        )
    _report("mint", skipped)


def wtq_problems(path: str | None, split: str) -> Iterator[Problem]:
    """Load WikiTableQuestions' official test questions, whose tables occur in no training question."""
    for row in _folder(path, split, "wtq"):
        if row.get("task_name") == TABLES and row.get("split") == UNSEEN_TABLES:
            yield _table_problem(row, "wtq")


def split_of(key: str) -> str:
    """Choose the split by a hash of `key`, a task's name or table, so that no order or choice of rows leaks a test task."""
    return "test" if hashlib.sha256(key.encode()).digest()[0] % 8 == 0 else "train"


def plain(question: str) -> str:
    """Normalize a question for comparison: strip a leading `Task:` and collapse white space."""
    return " ".join(question.removeprefix("Task:").split())


class _Golds:
    """The gold answers of a folder, stored under the keys that join them to other rows.

    maths      MATH's question, normalized by `plain` -> gold answer
    by_row     id of a row of CodeActInstruct -> gold answer
    tables     task_id -> row of WikiTableQuestions, which contains the gold answer
    benchmark  MINT's questions, normalized by `plain`
    """

    def __init__(self, rows: list[Row]) -> None:
        self.maths: dict[str, str] = {}
        self.by_row: dict[str, str] = {}
        self.tables: dict[str, Row] = {}
        self.benchmark: set[str] = set()
        for row in rows:
            if _is_mint(row):
                self.benchmark.add(plain(row.text("prompt")))
            elif row.get("rows") is not None and row.get("split") != UNSEEN_TABLES:
                self.tables.setdefault(row.text("task_id"), row)
            elif isinstance(row.get("gold"), str):
                self.by_row.setdefault(row.text("id"), row.text("gold"))
            elif row.get("conversations") is None and (gold := _reference(row)):
                self.maths.setdefault(plain(str(row.get("prompt") or row.get("problem"))), gold)

    def task(self, row: Row) -> tuple[Problem | None, str]:
        """Return (problem, key) for a row: its problem, and the key for `split_of`.

        The problem is None if the row has no gold answer.
        """
        if row.get("rows") is not None and row.get("split") != UNSEEN_TABLES:
            return _table_problem(row, "codeact"), row.text("table_id")
        question = row.get("prompt") or row.get("problem")
        if row.get("conversations") is not None or _is_mint(row) or not question or row.get("rows") is not None:
            return None, ""
        gold = self.maths.get(plain(str(question)))
        name = (
            f"{row.get('task_type') or 'reasoning'}/{row.get('task_name') or 'math'}/{row.get('task_id') or row.number}"
        )
        text = f"Task:\n{str(question).removeprefix('Task:').strip()}"
        return (Problem(name, text, gold, "codeact", environment=ENVIRONMENT, part="math") if gold else None), name


def _from_conversation(row: Row, golds: _Golds, skipped: Counter[str]) -> tuple[Problem | None, str]:
    """Return (problem, key) for a teacher's row: its problem, and the key for `split_of`.

    The key is the table's id, or `<task_type>/<task_name>/<task_id>`. If the row has no gold answer, the problem is None and
    the row is counted in `skipped`.
    """
    identity = row.text("id")
    parts = identity.split("/")
    turns = row.get("conversations")
    if len(parts) < 6 or not isinstance(turns, list) or len(turns) < 3:
        raise UserError(
            f"{row.where} is not a row of CodeActInstruct: a row needs an id of at least six parts separated by `/`, and "
            "at least three turns (system, user, then the episode)"
        )
    kind, name, task = parts[1], parts[2], "/".join(parts[3:-2])
    texts = [str(turn.get("content", "")) for turn in turns if isinstance(turn, dict)]
    question, episode = texts[1], _episode(texts[2:])
    if name == TABLES and (table := golds.tables.get(task)):
        problem = replace(_table_problem(table, "codeact"), id=identity, question=question, episode=episode)
        return problem, table.text("table_id")
    if name in MATH and (gold := golds.maths.get(plain(question)) or golds.by_row.get(identity)):
        return Problem(
            identity, question, gold, "codeact", environment=ENVIRONMENT, episode=episode, part="math"
        ), f"{kind}/{name}/{task}"
    skipped[name if kind != "decision_making" else name.partition("/")[0]] += 1
    return None, ""


def _episode(texts: list[str]) -> tuple[str, ...]:
    """Return a teacher's turns and the environment's answers, with each turn truncated where a policy's turn would end.

    Returns an empty tuple if the episode must not be imitated: if a turn has two actions (the teacher's environment executed
    the last one), if a turn uses a tool that is not available here, or if the last turn does not end with a solution.
    """
    turns = []
    for text in texts[::2]:
        if len(_ACTION.findall(text)) > 1 or _TOOLS.search(text):
            return ()
        stop = _STOP.search(text)
        turns.append(text[: stop.end()] if stop else text)
    if len(texts) % 2 == 0 or not turns or not turns[-1].endswith("</solution>"):
        return ()
    return tuple(turns[n // 2] if n % 2 == 0 else texts[n] for n in range(len(texts)))


def _table_problem(row: Row, task: str) -> Problem:
    """Make a problem from a question about a table.

    The problem's setup defines the variable that the prompt mentions, `df` or `conn`, and does not contain the gold answer.
    """
    values, columns, rows = row.get("reference_list"), row.get("columns"), row.get("rows")
    if not (isinstance(values, list) and values and isinstance(columns, list) and isinstance(rows, list)):
        raise UserError(f"{row.where} has no table: it needs `reference_list`, `columns` and `rows`")
    setup = _FRAME.format(rows=_compact(rows), columns=_compact(columns))
    setup += _DATABASE if "`conn`" in row.text("prompt") else _FRAME_ALONE
    escaped = (str(value).replace("\\", "\\\\").replace("|", "\\p").replace("\n", "\\n") for value in values)
    return Problem(
        row.text("task_id"),
        str(row.get("prompt")),
        "|".join(escaped),
        task,
        environment=ENVIRONMENT,
        setup=setup,
        check="denotation",
        part="wtq",
    )


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _reference(row: Row) -> str:
    """Return the gold answer of a row: its `reference` or `answer`, otherwise the last box of its `solution`.

    Returns an empty string if the row has none of them.
    """
    gold = row.get("reference")
    if gold is None:
        gold = row.get("answer")
    if gold is None:
        return _last_box(str(row.get("solution") or ""))
    return gold if isinstance(gold, str) else json.dumps(gold) if isinstance(gold, list) else str(gold)


def _last_box(solution: str) -> str:
    """Return the content of the last `\\boxed{…}`, found by counting braces, or "" if there is no box."""
    boxes = list(_BOX.finditer(solution))
    if not boxes:
        return ""
    start = boxes[-1].end()
    depth = 0
    for place in range(start, len(solution)):
        depth += {"{": 1, "}": -1}.get(solution[place], 0)
        if depth == 0:
            return solution[start + 1 : place]
    return ""


def _is_mint(row: Row) -> bool:
    return isinstance(row.get("extra"), dict) and row.get("task_name") is not None


def _folder(path: str | None, split: str, task: str) -> list[Row]:
    if path is None:
        raise UserError(
            f"task {task} needs path=…, a folder with gold answers; its files are described in `sspo_cli.tasks.codeact`"
        )
    if split not in SPLITS:
        raise UserError(f"task {task} has no split {split}; it has {', '.join(SPLITS)}")
    return list(read_folder(path))


def _report(task: str, skipped: Counter[str]) -> None:
    if skipped:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(skipped.items()))
        log.warning(
            "task %s leaves out rows that have no gold answer or need missing data: %s; they do not count as unsolved",
            task,
            counts,
        )
