"""The results of a measurement: rows of `<benchmark>.jsonl`, their summary, and both files."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock

from sspo_cli import ranks
from sspo_cli.evaluation.benchmark import Benchmark, Conditions
from sspo_cli.evaluation.identity import Identity
from sspo_cli.evaluation.partial import remove_abandoned
from sspo_cli.locks import hold_lock
from sspo_cli.statistics import pass_at_k, wilson
from sspo_cli.tracking.files import (
    explain_os_errors,
    read_json,
    read_jsonl,
    remove_leftovers,
    write_json_atomic,
    write_jsonl_atomic,
)
from sspo_cli.tracking.shapes import EVALUATIONS
from sspo_cli.types import Completion, Group, Problem


def rows_of(group: Group, conditions: Conditions, identity: Identity) -> list[dict[str, Any]]:
    """Return the rows of `<benchmark>.jsonl` for a graded problem, one for each sample."""
    return [
        {
            "samples": conditions.samples,
            "temperature": conditions.temperature,
            "max_new_tokens": conditions.max_new_tokens,
            "template": conditions.prompt,
            "identity": identity.digest,
            "sample": sample,
            "id": group.prompt.problem.id,
            "prompt": group.prompt.text,
            "completion": group.prompt.opening + completion.text,
            "extracted": reward.extracted,
            "gold": group.prompt.problem.answer,
            "correct": reward.answer == 1.0,
            "format": reward.format,
            "tokens": completion.own_tokens,
            "finish": "length" if completion.truncated else "stop",
            "status": reward.status,
            **_episode_of(group.prompt.problem, completion, conditions),
        }
        for sample, (completion, reward) in enumerate(zip(group.completions, group.rewards, strict=True))
    ]


def _episode_of(problem: Problem, completion: Completion, conditions: Conditions) -> dict[str, Any]:
    """Return the additional fields in the row of an episode, or an empty dict for a single turn."""
    if completion.episode is None:
        return {}
    turns = [asdict(turn) for turn in completion.episode.turns]
    return {
        **conditions.of_episodes,
        "part": problem.part,
        "played": turns,
        "outcome": asdict(completion.episode.outcome),
    }


def summarize(
    rows: Sequence[dict[str, Any]], benchmark: Benchmark, conditions: Conditions, identity: Identity
) -> dict[str, Any]:
    """Return the row of `summary.json` for these answers, without step, checkpoint and weights.

    pass_at_1  share of correct samples
    low, high  95 % Wilson interval for n problems and the number of solved problems, averaged over samples and rounded
    tokens     mean number of tokens of a completion
    """
    samples, n = conditions.samples, len(benchmark.prompts)
    solved = [sum(row["correct"] for row in rows[i : i + samples]) for i in range(0, len(rows), samples)]
    correct = sum(solved)
    low, high = wilson(round(correct / samples), n)
    tries = sorted({2**power for power in range(samples.bit_length())} | {samples})
    return {
        "benchmark": benchmark.name,
        "split": benchmark.split,
        "n": n,
        "samples": samples,
        "temperature": conditions.temperature,
        "max_new_tokens": conditions.max_new_tokens,
        "prompt": conditions.prompt,
        "seed": conditions.seed,
        **identity.fields(),
        "path": benchmark.path,
        "trained_on": benchmark.trained_on,
        "correct": correct,
        "pass_at_1": correct / len(rows),
        "low": low,
        "high": high,
        "pass_at_k": {str(k): math.fsum(pass_at_k(c, samples, k) for c in solved) / n for k in tries},
        "format": math.fsum(row["format"] for row in rows) / len(rows),
        "truncated": sum(row["finish"] == "length" for row in rows),
        "timeouts": sum(row["status"] == "timeout" for row in rows),
        "tokens": sum(row["tokens"] for row in rows) / len(rows),
        **_summarize_episodes(rows, conditions),
    }


def _summarize_episodes(rows: Sequence[dict[str, Any]], conditions: Conditions) -> dict[str, Any]:
    """Summarize the episodes among the rows; return an empty dict if there are none.

    episodes  means over the outcomes of all episodes; `solved_at_first` is the share that the first proposal solved. Later
              proposals have the advantage that the policy knows that the first proposal was wrong
    parts     for a benchmark with several kinds of problems, {kind: {n, correct, pass_at_1, low, high, truncated}}
    """
    outcomes = [row["outcome"] for row in rows if "outcome" in row]
    if not outcomes:
        return {}
    names = ("turns", "proposals", "calls", "timeouts", "crashes")
    means = {name: sum(outcome[name] for outcome in outcomes) / len(outcomes) for name in names}
    first = sum(outcome["solved"] and outcome["proposals"] == 1 for outcome in outcomes) / len(outcomes)
    parts = {
        name: [row for row in rows if row.get("part") == name] for name in sorted({row.get("part", "") for row in rows})
    }
    return {
        **conditions.of_episodes,
        "episodes": {**means, "solved_at_first": first},
        "parts": {
            name: _summarize_part(of_part, conditions.samples) for name, of_part in parts.items() if len(parts) > 1
        },
    }


def _summarize_part(rows: Sequence[dict[str, Any]], samples: int) -> dict[str, Any]:
    n, correct = len(rows) // samples, sum(row["correct"] for row in rows)
    low, high = wilson(round(correct / samples), n)
    truncated = sum(row["finish"] == "length" for row in rows)
    share = correct / len(rows)
    return {"n": n, "correct": correct, "pass_at_1": share, "low": low, "high": high, "truncated": truncated}


@ranks.by_first
def record(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    benchmark: Benchmark,
    conditions: Conditions,
    identity: Identity,
    step: int,
    checkpoint: str,
    weights: str,
) -> dict[str, Any]:
    """Write `<benchmark>.jsonl` and `summary.json` in `folder`; return the summary.

    checkpoint  name of the checkpoint or model
    weights     fingerprint of the policy; `find_recorded` uses it to find the measurement

    Rows of an earlier measurement with the same step, conditions and identity are replaced in both files.
    """
    summary = {"step": step, **summarize(rows, benchmark, conditions, identity)}
    summary |= {"checkpoint": checkpoint, "weights": weights}
    details, summaries = folder / f"{benchmark.name}.jsonl", folder / "summary.json"

    def is_replaced(row: dict[str, Any], template: str) -> bool:
        return row.get("step") == step and conditions.matches(row, identity, template)

    with explain_os_errors("write", folder):
        folder.mkdir(parents=True, exist_ok=True)
    with hold_lock(FileLock(folder / ".lock")):  # `sspo eval` may write here while the run is still training
        kept = [row for row in read_jsonl(details) if not is_replaced(row, "template")]
        write_jsonl_atomic(details, [*kept, *({"step": step, **row} for row in rows)])
        kept = read_json(summaries, EVALUATIONS) if summaries.exists() else []
        kept = [row for row in kept if row["benchmark"] != benchmark.name or not is_replaced(row, "prompt")]
        write_json_atomic(summaries, [*kept, summary])
        remove_leftovers(folder)
    remove_abandoned(folder / "partial")
    return summary
