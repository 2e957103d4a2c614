"""Grading of recorded outputs without a model: `sspo eval --completions`."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from sspo_cli.errors import UserError
from sspo_cli.rewards import AnswerChecker, Verdict, checker_version, format_reward
from sspo_cli.rewards.reading import Reading, read_answer, read_gold
from sspo_cli.tasks.files import MOST_DIGITS
from sspo_cli.tracking.files import explain_os_errors, finite, write_jsonl_atomic

ADDED = ("extracted", "reader", "verdict", "r_answer", "r_format", "status")
MEASURED = ("benchmark", "step", "identity", "samples", "temperature", "max_new_tokens", "template")
NO_GOLD = Verdict(False, "no gold")


@dataclass(frozen=True, slots=True)
class Recorded:
    """A row of the file: all fields, the model's text, and the gold answers. A right answer matches one of the gold answers."""

    fields: dict[str, Any]
    text: str
    golds: list[str]


def grade_file(path: Path, out: Path | None = None, timeout: float = 3.0) -> None:
    """Grade the rows of a JSON-lines file, write them to `out`, and print a summary. Torch is not loaded.

    path     file with the recorded outputs
    out      default: <stem>.graded.jsonl in the folder of `path`
    timeout  seconds for each check of an answer

    A row has the gold answer in `gold`, and the model's text in `completion` or `prediction`. The gold answer may be a number,
    a worked solution that ends in `#### 72` or `\\boxed{72}`, or a list of right answers. Rows are written in the order of the
    file, with all of their fields and the following fields. If the file already has a field with one of these names, the added
    field gets the prefix `sspo_`.

    extracted  the model's answer; null if there is none
    reader     source of the answer: "tags", "boxed" (last box), "formula" (last formula), "number" (last number), "text" (words
               after `answer is`, or a text that consists of the gold answer); null if there is no answer
    verdict    "correct" or "wrong"
    r_answer   1.0 or 0.0
    r_format   format reward of the paper's appendix A
    status     status of the check: "ok", "timeout", "error", "no answer", or "no gold" if `gold` is null or empty

    Raises UserError, and does not write `out`, if `path` cannot be read, if a row has no gold or no text, or if `out` is `path`
    or is in a folder that does not exist.
    """
    rows = _read(path)
    out = out or path.with_name(f"{path.stem}.graded.jsonl")
    if out.exists() and out.samefile(path):
        raise UserError(f"{out} is the file to be graded; name another file with --out")
    if not out.parent.is_dir():
        raise UserError(f"{out} cannot be written: there is no folder {out.parent}")
    terminal = Console(stderr=True)
    progress = Progress(console=terminal, transient=True, disable=not terminal.is_terminal)
    with AnswerChecker(timeout=timeout) as checker, progress as bars:
        readings = [read_answer(row.text, row.golds) for row in rows]
        checks = [_submit(reading, row.golds, checker) for reading, row in zip(readings, rows, strict=True)]
        verdicts = [_best(check) for check in bars.track(checks, description="grading")]
    graded = [
        {
            "extracted": reading.answer,
            "reader": reading.reader,
            "verdict": "correct" if verdict.equal else "wrong",
            "r_answer": float(verdict.equal),
            "r_format": format_reward(row.text),
            "status": verdict.status,
        }
        for row, reading, verdict in zip(rows, readings, verdicts, strict=True)
    ]
    names = _free_names(rows)
    write_jsonl_atomic(
        out,
        (
            {**row.fields, **{names[key]: value for key, value in grade.items()}}
            for row, grade in zip(rows, graded, strict=True)
        ),
    )
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for line in summary(rows, graded):
        console.print(line)
    if renamed := [f"{key} as {name}" for key, name in names.items() if key != name]:
        console.print(
            f"the rows already have fields of the same names; the new fields are called: {', '.join(renamed)}"
        )
    console.print(f"every row with its verdict: {out}")


def _free_names(rows: Sequence[Recorded]) -> dict[str, str]:
    """Return, for each added field, a name that no row of the file already uses."""
    taken = set().union(*(row.fields for row in rows))
    names = {}
    for name in ADDED:
        names[name] = name
        while names[name] in taken:
            names[name] = f"sspo_{names[name]}"
    return names


def summary(rows: Sequence[Recorded], graded: Sequence[dict[str, Any]]) -> list[str]:
    """Return a summary as lines: share of correct answers with 95 % interval, sources of the answers, failed checks.

    graded  added fields of each row

    If the file is an `eval/<benchmark>.jsonl` with several measurements, there is a share for each measurement.
    """
    measured: dict[str, list[dict[str, Any]]] = defaultdict(list)
    varying = [name for name in MEASURED if len({json.dumps(row.fields.get(name)) for row in rows}) > 1]
    if not any("identity" in row.fields for row in rows):
        varying = []  # another program wrote the rows; its fields may have other meanings
    for row, grade in zip(rows, graded, strict=True):
        measured[", ".join(f"{name} {row.fields.get(name)}" for name in varying)].append(grade)
    lines = [f"{name}: {_correct_share(alike)}" if name else _correct_share(alike) for name, alike in measured.items()]
    readers = Counter(row["reader"] or "nothing" for row in graded)
    right = Counter(row["reader"] for row in graded if row["verdict"] == "correct")
    lines.append("read from " + ", ".join(f"{name} {n} ({right[name]} correct)" for name, n in readers.most_common()))
    statuses = Counter(row["status"] for row in graded if row["status"] != "ok")
    if statuses:
        lines.append("counted as wrong: " + ", ".join(f"{name} {n}" for name, n in statuses.most_common()))
    return [*lines, f"answer check {checker_version()}"]


def _correct_share(graded: Sequence[dict[str, Any]]) -> str:
    from sspo_cli.statistics import wilson  # here, because loading scipy takes longer than grading a small file

    correct = sum(row["verdict"] == "correct" for row in graded)
    low, high = wilson(correct, len(graded))
    return f"{correct} of {len(graded)} correct: {correct / len(graded):.1%} [{low:.1%}, {high:.1%}]"


def _read(path: Path) -> list[Recorded]:
    with explain_os_errors("read", path):
        if path.is_char_device() or path.is_block_device():
            raise UserError(f"{path} is a device, not a regular file; name a file of recorded outputs")
        content = path.read_bytes()
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text") from None
    rows = [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise UserError(f"{path} has no rows; each line is an object with `gold` and `completion`")
    return rows


def _row(line: str, where: str) -> Recorded:
    try:
        fields = finite(json.loads(line))  # other programs mark missing values with NaN
    except json.JSONDecodeError:
        raise UserError(f"{where} is not valid JSON") from None
    except ValueError:
        raise UserError(f"{where} has an integer of more than {MOST_DIGITS:,} digits; write it as text") from None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply to be read") from None
    if not isinstance(fields, dict):
        raise UserError(f"{where} must be an object with `gold` and `completion`, not {json.dumps(fields)[:40]}")
    names = ", ".join(fields) or "none"
    if "gold" not in fields:
        raise UserError(f"{where} has no `gold`; its fields are {names}")
    gold = fields["gold"]
    golds = [] if gold is None else gold if isinstance(gold, list) else [gold]
    if not all(map(_is_text, golds)):
        raise UserError(
            f"{where} has a `gold` that is neither text nor a number nor a list of these: {json.dumps(gold)[:40]}"
        )
    texts = [fields[name] for name in ("completion", "prediction") if _is_text(fields.get(name))]
    if not texts:
        raise UserError(f"{where} has no text in `completion` or `prediction`; its fields are {names}")
    return Recorded(fields, str(texts[0]), [str(gold) for gold in golds if str(gold).strip()])


def _is_text(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _submit(reading: Reading, golds: Sequence[str], checker: AnswerChecker) -> list[Future[Verdict]]:
    return [checker.submit(reading.answer, read_gold(gold)) for gold in golds]


def _best(checks: Sequence[Future[Verdict]]) -> Verdict:
    """Return the verdict of a matching gold answer if there is one, or else a failed check, or else the first verdict."""
    verdicts = [check.result() for check in checks]
    return max(verdicts, key=lambda verdict: (verdict.equal, verdict.status != "ok"), default=NO_GOLD)
