"""Plausible runs, written as the loop writes them."""

import math
import random
from pathlib import Path
from typing import Any

from sspo_cli.config_files import load_config
from sspo_cli.tracking.files import write_json_atomic
from sspo_cli.tracking.jsonl import JsonlSink
from sspo_cli.tracking.run_folder import RunFolder, State
from sspo_cli.tracking.tracker import Tracker


def evaluation(step: int, correct: int, n: int = 200, benchmark: str = "arithmetic", **changes: Any) -> dict[str, Any]:
    settings = {"split": "test", "temperature": 0.0, "max_new_tokens": 48, "prompt": "think-answer"}
    row = {"step": step, "benchmark": benchmark, "n": n, "correct": correct, "pass_at_1": correct / n}
    return {**row, **settings, "checkpoint": f"step-{step}", "truncated": 0, **changes}


def write_run(
    path: Path,
    *overrides: str,
    steps: int = 12,
    last: int | None = None,
    state: State = "finished",
    reason: str | None = None,
    evaluations: list[dict[str, Any]] | None = None,
) -> Path:
    """A run of `steps`, of which `last` were taken; rewards rise, entropy falls, each seed with its own noise."""
    options = load_config(overrides=[f"steps={steps}", *overrides])
    noise = random.Random(f"{options.seed} {options.objective.method} {options.objective.gate}")
    with RunFolder.create(path, options, ["sspo", "train"]) as run:
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
            tracker.log(step, metrics)
        tracker.finish(state, reason)
        if evaluations is None:
            evaluations = [evaluation(0, 60), evaluation(steps, 120 + options.seed)]
        write_json_atomic(run.summary_path, evaluations)
    return path
