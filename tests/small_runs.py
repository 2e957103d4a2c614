"""Small whole runs of `sspo train`, also killed at a chosen place, for tests of the loop and of interruptions."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import torch
from commands import Outcome, sspo
from forked import Captured

SMALL = {
    "steps": 10,
    "model.tiny.hidden_size": 32,
    "model.tiny.heads": 1,
    "model.tiny.layers": 1,
    "rollout.prompts": 8,
    "rollout.group_size": 4,
    "rollout.max_new_tokens": 24,
    "learning.mu": 4,
    "optimizer.learning_rate": 1e-3,
    "cold_start.steps": 60,
    "cold_start.learning_rate": 1e-2,
    "cold_start.checkpoint_every": 25,
    "checkpoint.every": 3,
    "tasks": "[{name: arithmetic, limit: 200}]",
    "evaluation.benchmarks": "[{name: arithmetic, split: test, limit: 20}]",
    "evaluation.every": 4,
}


def arguments(runs: Path, *more: str) -> list[str]:
    named = any(text.startswith("model.name=") for text in more)  # a named model has its own size
    values = {key: value for key, value in SMALL.items() if not (named and key.startswith("model.tiny."))}
    sets = [part for key, value in values.items() for part in ("-s", f"{key}={value}")]
    return ["train", "--runs-dir", str(runs), *sets, *more]


def run(runs: Path, *more: str) -> Outcome:
    done = sspo(*arguments(runs, *more))
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_times(run_folder: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows(run_folder / "metrics.jsonl")]


def weights(run_folder: Path) -> bytes:
    return (run_folder / "checkpoints" / "step-10" / "model.safetensors").read_bytes()


# A script that runs the command line and kills itself at a chosen call of one of the program's functions.
KILLED = """
import os, signal, sys
import sspo_cli.policy.checkpoint, sspo_cli.policy.cold_start, sspo_cli.tracking.tracker
owner, name, countdown = {owner}, {name!r}, {countdown}
original = getattr(owner, name)
def fatal(*args, **kwargs):
    global countdown
    countdown -= 1
    if countdown == 0 and {before}:
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(*args, **kwargs)
    if countdown == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(owner, name, fatal)
from sspo_cli.cli import main
main()
"""
AFTER_STEP = {"owner": "sspo_cli.tracking.tracker.Tracker", "name": "log", "before": False}
IN_CHECKPOINT = {"owner": "sspo_cli.policy.checkpoint.os", "name": "rename", "before": True}
BEFORE_BEST = {"owner": "sspo_cli.tracking.run_folder.RunFolder", "name": "choose_best", "before": True}
IN_COLD_START = {"owner": "sspo_cli.policy.cold_start", "name": "guarded_step", "before": False}


def run_killed(runs: Path, point: dict, countdown: int, *more: str) -> None:
    command = ["-c", KILLED.format(**point, countdown=countdown), *arguments(runs, "--run", "killed", *more)]
    process: Captured | subprocess.Popen
    if torch.cuda.is_initialized():  # a fork cannot use the GPU
        command = [sys.executable, *command]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    else:
        process = Captured(*command)
    said, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, said
