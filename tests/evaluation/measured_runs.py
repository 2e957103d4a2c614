"""A small run that several test files evaluate with `sspo eval`."""

import json
from pathlib import Path

from commands import Outcome, sspo

SMALL = {
    "steps": 2,
    "model__tiny__hidden_size": 32,
    "model__tiny__heads": 1,
    "model__tiny__layers": 1,
    "rollout__prompts": 4,
    "rollout__group_size": 4,
    "rollout__max_new_tokens": 48,
    "cold_start__steps": 150,
    "cold_start__learning_rate": 1e-2,
    "checkpoint__every": 1,
    "evaluation__benchmarks": "[{name: arithmetic, split: test, limit: 30}]",
}


def measure(*arguments: object, **options: object) -> Outcome:
    done = sspo("eval", "--runs-dir", ".", *arguments, **options)
    assert done.returncode == 0, done.stderr
    return done


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def summaries(folder: Path) -> list[dict]:
    return json.loads((folder / "eval" / "summary.json").read_text())
