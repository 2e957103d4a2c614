"""Lookup of recorded measurements, which `sspo eval` prints instead of sampling again."""

from pathlib import Path
from typing import Any

from sspo_cli import ranks
from sspo_cli.evaluation.benchmark import Benchmark, Conditions
from sspo_cli.evaluation.identity import Identity
from sspo_cli.evaluation.summary import summarize
from sspo_cli.tracking.files import read_json, read_jsonl
from sspo_cli.tracking.shapes import ANSWER, EVALUATIONS

NEEDED = {"extracted", "correct", "format", "tokens", "finish", "status", "max_new_tokens"}  # fields of an answer
UNMEASURED = ("path", "trained_on")  # fields of a summary that do not describe the measurement


@ranks.by_first
def find_recorded(
    folder: Path, benchmark: Benchmark, conditions: Conditions, identity: Identity, step: int, weights: str
) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """Return the summary and the answers that `record` wrote for the same measurement of the same weights.

    weights  fingerprint of the policy

    Returns None if there is no such measurement. Also returns None if the answers do not reproduce the recorded summary, because
    a file was edited, or because the process was killed after writing only one of the two files. Raises UserError if a file is
    damaged.
    """
    path = folder / "summary.json"
    recorded = [
        row
        for row in (read_json(path, EVALUATIONS) if path.exists() else [])
        if (row["step"], row["benchmark"], row.get("weights")) == (step, benchmark.name, weights)
        and conditions.matches(row, identity, "prompt")
    ]
    if not recorded:
        return None
    rows = [
        row
        for row in read_jsonl(folder / f"{benchmark.name}.jsonl", ANSWER)
        if row["step"] == step and conditions.matches(row, identity, "template")
    ]
    if len(rows) != len(benchmark.prompts) * conditions.samples or not all(row.keys() >= NEEDED for row in rows):
        return None
    summary = summarize(rows, benchmark, conditions, identity)
    is_drawn = conditions.temperature or benchmark.runs_programs  # other completions do not depend on the seed
    drawn_by = () if is_drawn else ("seed",)
    compared = summary.keys() - {*UNMEASURED, *drawn_by}
    if any(recorded[-1].get(name) != summary[name] for name in compared):
        return None
    return {**recorded[-1], **summary}, rows
