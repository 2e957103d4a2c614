"""Selection of recorded evaluation answers that is small enough for the report page."""

import json
from collections.abc import Sequence
from itertools import islice
from operator import itemgetter
from typing import Any

from sspo_cli.errors import UserError
from sspo_cli.report.collect import Collection
from sspo_cli.report.completions import coarse_to_fine
from sspo_cli.report.groups import distinguish, grouped
from sspo_cli.report.records import PART, BareModel, RunRecord, Select, answers, short_names

BUDGET = 2_000_000  # most characters of JSON for the answers of all runs and models together
MOST_ANSWERS = 200  # most answers of a run or model on a benchmark
LONGEST = 4000  # most characters of an answer, and of a question; all runs share the questions
SHORTEST = 300  # least number of characters of a shortened answer, independent of the number of runs

# Fields of a row that describe its measurement. Rows of different measurements are not mixed.
CONDITIONS = ("samples", "temperature", "max_new_tokens", "template", "turns", "proposals", "identity")


def sample_answers(collection: Collection, budget: int = BUDGET) -> dict[str, Any]:
    """Select answers of each run and measured model at the checkpoint that the tables show, spread evenly over the problems.

    budget  most characters of JSON for all runs and models together

    Returns {questions, sources}. A source has benchmarks, and a benchmark has answers:

    questions  texts of the questions; answers refer to a question by its index
    source     {path, name, label, damage, benchmarks} of a run or model; `damage` describes its unreadable files, or is None
    benchmark  {name, file, step, problems, right, total, answers}; `problems`, `right` and `total` are the numbers of
               problems, right answers and answers in the file, of which `answers` is a selection
    answer     {id, question, gold, sample, text, left_out, extracted, right, format, tokens, finish, status}

    - `text`: the completion without `left_out` characters in its middle; null if an older version wrote the row
    - `format`, `tokens`, `finish`, `status`: as in eval/<benchmark>.jsonl; null if an older version wrote the row
    """
    sources: list[tuple[RunRecord | BareModel, str]] = [
        (run, f"{group.label}, seed {run.seed}") for group in collection.groups for run in group.runs
    ]
    sources += [(model, f"{model.name} by sspo eval") for model in collection.bare_models]
    if not sources:
        return {"questions": [], "sources": []}
    _, short = short_names([source.path for source, _ in sources])
    questions: dict[str, int] = {}
    sampled = [
        {
            "path": str(source.path),
            "name": short[source.path],
            "label": label,
            **_of_source(source, collection.select, budget // len(sources), questions),
        }
        for source, label in sources
    ]
    return {"questions": list(questions), "sources": [each for each in sampled if each["benchmarks"] or each["damage"]]}


def _of_source(source: RunRecord | BareModel, select: Select, budget: int, questions: dict[str, int]) -> dict[str, Any]:
    """Select answers of a run or model within its share `budget`. Adds the questions of the answers to `questions`."""
    names = list(dict.fromkeys(str(row["benchmark"]).partition(PART)[0] for row in source.evaluations))
    benchmarks: list[dict[str, Any]] = []
    damage: list[str] = []
    for name in names:
        try:
            rows = answers(source, name)
        except UserError as error:  # the page shows the error, and the other files are still read
            damage.append(str(error))
            continue
        measured = grouped(_at_selected_step(source, rows, select), lambda row: tuple(map(row.get, CONDITIONS)))
        details = distinguish([name] * len(measured), [dict(zip(CONDITIONS, key, strict=True)) for key in measured])
        for detail, alike in zip(details, measured.values(), strict=True):
            title = f"{name} ({detail})" if detail else name
            part = budget // len(names) // len(measured)
            file = str(source.path / "eval" / f"{name}.jsonl")
            benchmarks.append({"name": title, "file": file, **_of_measurement(alike, part, questions)})
    return {"damage": "; ".join(damage) or None, "benchmarks": benchmarks}


def _at_selected_step(
    source: RunRecord | BareModel, rows: Sequence[dict[str, Any]], select: Select
) -> list[dict[str, Any]]:
    """Return the rows of the step that the tables show. If there are none, return the rows of the last measured step."""
    steps = {row["step"] for row in rows}
    step = source.selected_step(select) if isinstance(source, RunRecord) else None
    shown = step if step in steps else max(steps, default=None)
    return [row for row in rows if row["step"] == shown]


def _of_measurement(rows: Sequence[dict[str, Any]], budget: int, questions: dict[str, int]) -> dict[str, Any]:
    problems = list(grouped(rows, itemgetter("id")).values())
    longest = min(LONGEST, max(SHORTEST, budget // 20))
    kept: dict[int, list[dict[str, Any]]] = {}  # by the index of the problem
    used = number = 0
    for place in dict.fromkeys(coarse_to_fine(len(problems))):
        known = len(questions)
        answered = [_answer(row, longest, questions) for row in problems[place][:MOST_ANSWERS]]
        used += len(json.dumps([answered, *islice(questions, known, None)], ensure_ascii=False))
        number += len(answered)
        if kept and (used > budget or number > MOST_ANSWERS):
            break
        kept[place] = answered
    return {
        "step": rows[0]["step"],
        "problems": len(problems),
        "right": sum(row["correct"] for row in rows),
        "total": len(rows),
        "answers": [answer for place in sorted(kept) for answer in kept[place]],
    }


def _answer(row: dict[str, Any], longest: int, questions: dict[str, int]) -> dict[str, Any]:
    text, left_out = row.get("completion"), 0
    if isinstance(text, str) and len(text) > longest:
        half = longest // 2
        text, left_out = text[:half] + text[-half:], len(text) - 2 * half
    question = str(row.get("prompt") or "")
    if len(question) > LONGEST:
        question = f"{question[: LONGEST // 2]} … {question[-LONGEST // 2 :]}"
    return {
        "id": row["id"],
        "question": questions.setdefault(question, len(questions)),
        "gold": row["gold"],
        "sample": row.get("sample", 0),
        "text": text,
        "left_out": left_out,
        "extracted": row.get("extracted"),
        "right": row["correct"],
        **{name: row.get(name) for name in ("format", "tokens", "finish", "status")},
    }
