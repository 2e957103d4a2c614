"""Greedy Pass@1 of a policy on a benchmark: the prompt, the extraction and the check of training."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from sspo_cli.config import RunOptions, TaskOptions
from sspo_cli.intervals import wilson
from sspo_cli.rewards import AnswerChecker, grade
from sspo_cli.rollout.engine import Engine, Sampling
from sspo_cli.tasks import load_problems
from sspo_cli.tracking.files import read_json, read_jsonl, write_json_atomic, write_jsonl_atomic
from sspo_cli.types import Group, Problem, Prompt

CHUNK = 256  # problems between two signs of progress


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Problems to measure on, rendered. `name` is the task's, or a local file's stem."""

    name: str
    split: str
    prompts: list[Prompt]


def load_benchmark(options: TaskOptions, limit: int | None, render: Callable[[Problem], Prompt]) -> Benchmark:
    """Its first `limit` problems, or as many as the options say. Raises UserError where they cannot be loaded."""
    problems = load_problems(options.name, path=options.path, split=options.split, limit=limit or options.limit)
    return Benchmark(options.label, options.split, [render(problem) for problem in problems])


def evaluation_tokens(options: RunOptions) -> int:
    """At most so many new tokens for each problem."""
    return options.evaluation.max_new_tokens or options.rollout.max_new_tokens


def evaluate(
    engine: Engine,
    benchmark: Benchmark,
    checker: AnswerChecker,
    max_new_tokens: int,
    progress: Callable[[int], None],
) -> list[Group]:
    """One greedy completion for each problem, graded. `progress(n)` is called when n more problems are done."""
    sampling = Sampling(temperature=0.0, max_new_tokens=max_new_tokens, seed=0)
    groups: list[Group] = []
    for start in range(0, len(benchmark.prompts), CHUNK):
        prompts = benchmark.prompts[start : start + CHUNK]
        completions = engine.generate([prompt.token_ids for prompt in prompts], 1, sampling)
        groups += grade_groups(prompts, completions, checker)
        progress(len(prompts))
    return groups


def grade_groups(prompts: Sequence[Prompt], completions: Sequence[list[Any]], checker: AnswerChecker) -> list[Group]:
    """Sampled completions with their rewards; what the chat template opened counts as part of the text."""
    texts = [p.opening + c.text for p, group in zip(prompts, completions, strict=True) for c in group]
    golds = [p.problem.answer for p, group in zip(prompts, completions, strict=True) for _ in group]
    rewards = iter(grade(texts, golds, checker))
    return [Group(p, group, [next(rewards) for _ in group]) for p, group in zip(prompts, completions, strict=True)]


def summarize(groups: Sequence[Group], benchmark: Benchmark, settings: dict[str, Any]) -> dict[str, Any]:
    """Pass@1 over the problems with its 95 % Wilson interval, and what it was measured with."""
    correct = sum(group.rewards[0].answer == 1.0 for group in groups)
    low, high = wilson(correct, len(groups))
    return {
        "benchmark": benchmark.name,
        "split": benchmark.split,
        "n": len(groups),
        "correct": correct,
        "pass_at_1": correct / len(groups),
        "low": low,
        "high": high,
        "format": math.fsum(group.rewards[0].format for group in groups) / len(groups),
        "truncated": sum(group.completions[0].truncated for group in groups),
        "timeouts": sum(group.rewards[0].status == "timeout" for group in groups),
        "temperature": 0.0,
        **settings,
    }


def record(
    folder: Path, groups: Sequence[Group], benchmark: Benchmark, step: int, settings: dict[str, Any]
) -> dict[str, Any]:
    """Writes `<benchmark>.jsonl` and `summary.json` in `folder`, in place of what they said of this step; returns the summary."""
    summary = {"step": step, **summarize(groups, benchmark, settings)}
    details, summaries = folder / f"{benchmark.name}.jsonl", folder / "summary.json"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # an `sspo eval` may measure a run that is going on
        rows = [row for row in read_jsonl(details) if row["step"] != step]
        write_jsonl_atomic(details, [*rows, *(problem_row(group, step) for group in groups)])
        others = read_json(summaries) if summaries.exists() else []
        others = [other for other in others if (other["step"], other["benchmark"]) != (step, benchmark.name)]
        write_json_atomic(summaries, [*others, summary])
    return summary


def problem_row(group: Group, step: int) -> dict[str, Any]:
    """A graded problem as an object for `<benchmark>.jsonl`."""
    (completion,), (reward,) = group.completions, group.rewards
    return {
        "step": step,
        "id": group.prompt.problem.id,
        "prompt": group.prompt.text,
        "completion": group.prompt.opening + completion.text,
        "extracted": reward.extracted,
        "gold": group.prompt.problem.answer,
        "correct": reward.answer == 1.0,
        "format": reward.format,
        "tokens": len(completion.token_ids),
        "truncated": completion.truncated,
        "status": reward.status,
    }
