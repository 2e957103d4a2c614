"""Plausible runs, written in the format of the training loop and of `sspo eval`.

By default they are runs of older versions: without the answers to each problem, kept completions and weights.
"""

import functools
import math
import random
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

from sspo_cli.config import load_config
from sspo_cli.tracking.files import write_json_atomic, write_jsonl_atomic
from sspo_cli.tracking.jsonl import JsonlSink
from sspo_cli.tracking.run_folder import RunFolder, State
from sspo_cli.tracking.tracker import Tracker

VERSIONS = functools.cache(metadata.version)  # reading those of all packages takes most of the time of writing a run


def evaluation(step: int, correct: int, n: int = 200, benchmark: str = "arithmetic", **changes: Any) -> dict[str, Any]:
    """Return a row of eval/summary.json with `correct` right answers to n problems, each answered `samples` times."""
    settings = {"split": "test", "temperature": 0.0, "max_new_tokens": 48, "prompt": "think-answer", "seed": 0}
    row = {"step": step, "benchmark": benchmark, "n": n, "correct": correct}
    row |= {"pass_at_1": correct / (n * changes.get("samples", 1))}
    return {**row, **settings, "checkpoint": f"step-{step}", "truncated": 0, **changes}


def validation(step: int, correct: int, n: int = 100, **changes: Any) -> dict[str, Any]:
    return evaluation(step, correct, n, benchmark="validation", split="validation", **changes)


def answer(row: dict[str, Any], problem: int, correct: bool, sample: int = 0) -> dict[str, Any]:
    """Return a row of eval/<benchmark>.jsonl that belongs to the evaluation `row`."""
    return {
        "step": row["step"],
        "samples": row.get("samples", 1),
        "temperature": row["temperature"],
        "max_new_tokens": row["max_new_tokens"],
        "template": row["prompt"],
        "sample": sample,
        "id": f"{row['benchmark']}-{problem}",
        "prompt": f"What is {problem} + 1?",
        "completion": f"<answer>{problem + correct}</answer>",
        "extracted": str(problem + correct),
        "gold": str(problem + 1),
        "correct": correct,
        "format": 0.25,
        "tokens": 3,
        "finish": "stop",
        "status": "ok",
    }


def write_answers(folder: Path, rows: list[dict[str, Any]], taste: str = "") -> None:
    """Write eval/<benchmark>.jsonl for the evaluations `rows`.

    The first problems are the easiest; each `taste` changes that order a little.
    """
    by_benchmark: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        noise = random.Random(f"{row['benchmark']} {taste}")
        tries = [(problem, sample) for problem in range(row["n"]) for sample in range(row.get("samples", 1))]
        easy_first = sorted(tries, key=lambda which: which[0] + noise.gauss(0, row["n"] / 8))
        solved = set(easy_first[: row["correct"]])
        answers = [answer(row, problem, (problem, sample) in solved, sample) for problem, sample in tries]
        by_benchmark.setdefault(row["benchmark"], []).extend(answers)
    for benchmark, answers in by_benchmark.items():
        write_jsonl_atomic(folder / "eval" / f"{benchmark}.jsonl", answers)


def write_bare_model(path: Path, model: str, evaluations: list[dict[str, Any]]) -> Path:
    """Write the folder that `sspo eval MODEL` leaves."""
    (path / "eval").mkdir(parents=True)
    write_json_atomic(path / "model.json", {"model": model, "options": {}})
    write_json_atomic(path / "eval" / "summary.json", evaluations)
    write_answers(path, evaluations)
    return path


def kept_group(
    step: int, minibatch: int, problem: str, group_size: int = 4, attenuation: float = 0.0
) -> list[dict[str, Any]]:
    """Return consecutive rows of completions.jsonl: half of the group is right, and later tokens weigh less."""
    rows = []
    for place in range(group_size):
        right = place % 2 == 0
        pieces = [
            "<think>",
            "1+",
            "1",
            "=2" if right else "=3",
            "</think>",
            "<answer>",
            "2" if right else "3",
            "</answer>",
        ]
        rows.append(
            {
                "step": step,
                "rollout": (step - 1) // 2,
                "minibatch": minibatch,
                "epoch": 1,
                "problem": problem,
                "prompt": "What is 1 + 1?",
                "gold": "2",
                "completion": "".join(pieces),
                "extracted": "2" if right else "3",
                "r_answer": float(right),
                "r_format": 1.0,
                "advantage": 0.866 if right else -0.866,
                "tokens": len(pieces),
                "truncated": False,
                "status": "ok",
                "pieces": pieces,
                "weights": [round(1 - attenuation * n / len(pieces), 3) for n in range(len(pieces))],
            }
        )
    return rows


def weights_row(step: int, minibatch: int, noise: random.Random) -> dict[str, Any]:
    """Return a row of weights.jsonl: all weights are 1 in the first minibatch, and many are below 1 in the second."""
    counts = []
    for total in (600, 400):
        bins = [0] * 24
        for _ in range(total):
            weight = 1.0 if minibatch == 1 else 1.0 - abs(noise.gauss(0, 0.1))
            bins[min(23, max(0, int(weight / 0.05 + 1e-9)))] += 1
        counts.append(bins)
    return {
        "step": step,
        "minibatch": minibatch,
        "epoch": 1,
        "width": 0.05,
        "positive": counts[0],
        "negative": counts[1],
    }


def write_run(
    path: Path,
    *overrides: str,
    steps: int = 12,
    last: int | None = None,
    state: State = "finished",
    reason: str | None = None,
    evaluations: list[dict[str, Any]] | None = None,
    whole: bool = False,
) -> Path:
    """Write a run of `steps` steps, of which `last` were taken.

    Rewards rise and entropy falls; each seed has its own noise. With `whole` the run has the times, answers,
    completions and weights that older versions did not write.
    """
    options = load_config(overrides=[f"steps={steps}", *overrides])
    noise = random.Random(f"{options.seed} {options.objective.method} {options.objective.gate}")
    with (
        mock.patch("importlib.metadata.version", VERSIONS),
        mock.patch("os.fsync"),
        RunFolder.create(path, options, ["sspo", "train"]) as run,
    ):
        tracker = Tracker([JsonlSink(run)])
        tracker.start(steps)
        for step in range(1, (steps if last is None else last) + 1):
            progress = 1 - math.exp(-2 * step / steps)
            answer = 0.3 + 0.5 * progress + noise.gauss(0, 0.04)
            form = min(1.0, 0.9 + 0.1 * progress + noise.gauss(0, 0.02))
            attenuated = abs(0.15 * progress + noise.gauss(0, 0.01))
            metrics = {
                "reward/mean": answer + form,
                "reward/answer": answer,
                "reward/format": form,
                "policy/entropy": 0.6 - 0.3 * progress + noise.gauss(0, 0.02),
                "weights/attenuated": attenuated,
                "weights/positive_attenuated": 0.8 * attenuated,
            }
            if step % 2 == 0:  # the first minibatch of a rollout batch may have none with a negative advantage
                metrics["weights/negative_attenuated"] = 1.2 * attenuated
            if whole:
                metrics |= {
                    "minibatch": 2 - step % 2,
                    "tokens": 640 * step,
                    "time/step": 0.5,
                    "time/elapsed": 0.5 * step,
                }
            tracker.log(step, metrics)
        tracker.finish(state, reason)
        if evaluations is None:
            evaluations = [evaluation(0, 60), evaluation(steps, 120 + options.seed)]
        write_json_atomic(run.summary_path, evaluations)
        if whole:
            write_answers(
                path, evaluations, taste=f"{options.seed} {options.objective.method} {options.objective.gate}"
            )
            taken = range(1, (steps if last is None else last) + 1)
            write_jsonl_atomic(path / "weights.jsonl", [weights_row(step, 2 - step % 2, noise) for step in taken])
            groups = [kept_group(step, 2 - step % 2, f"p{step}", attenuation=0.4 * (step % 2 == 0)) for step in taken]
            write_jsonl_atomic(path / "completions.jsonl", [row for group in groups for row in group])
    return path
