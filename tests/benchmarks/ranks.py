"""Measure the cost of ranks: a step on two ranks with a core each, and one process on one core with half of the minibatch.

    python -m tests.benchmarks.ranks                          # a model of 1 M parameters
    python -m tests.benchmarks.ranks --model FOLDER --rows 16 --length 96 --steps 6

Needs two free cores. A step is the gradient of a minibatch by several micro-batches, its clipping and AdamW. The two kinds are
measured in turn, and the medians are printed with their ratio; without any cost it is 1.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from sspo_cli import ranks
from sspo_cli.config import LearningOptions, ModelOptions, TinyModelOptions
from sspo_cli.objectives import build_objective
from sspo_cli.policy.batch import Batch, collate
from sspo_cli.policy.learner import accumulate_gradient
from sspo_cli.policy.model import load_policy
from sspo_cli.policy.optimizer import adamw, guarded_step
from sspo_cli.supervisor import run_ranks
from sspo_cli.types import Completion, Group, Problem, Prompt, Reward

ONE_MILLION = TinyModelOptions(hidden_size=128, layers=6, heads=2, intermediate_size=256)
GROUP, WARM_UP, TURNS = 8, 3, 3


def minibatch(rows: int, length: int, vocabulary: int) -> Batch:
    """Groups whose completions have between half of `length` and all of it; the same lengths in every group."""
    draw = torch.Generator().manual_seed(1)

    def ids(count: int) -> list[int]:
        return torch.randint(4, vocabulary, (count,), generator=draw).tolist()

    groups = []
    for number in range(rows // GROUP):
        written = [ids(length - length // 2 * place // GROUP) for place in range(GROUP)]
        completions = [Completion(tokens, [-1.0] * len(tokens), "", truncated=False) for tokens in written]
        prompt = Prompt(Problem(str(number), "", "", "test"), "", ids(16))
        groups.append(Group(prompt, completions, [Reward(0.0, 0.0, None, "ok")] * GROUP))
    return collate(groups, torch.randn(len(groups), GROUP, generator=draw), mask_truncated=False)


def measure(model: str | None, rows: int, length: int, steps: int) -> list[float]:
    """Seconds of each step after the first ones."""
    torch.set_num_threads(1)
    options = ModelOptions(name=model) if model else ModelOptions(tiny=ONE_MILLION)
    policy = load_policy(options, torch.device("cpu"))
    objective, learning = build_objective(method="sspo", gate="atanlog", token_limit=length), LearningOptions()
    optimizer = adamw(policy.parameters, (0.9, 0.95), 0.0, eight_bit=False)
    batch = minibatch(rows, length, 90)
    factors, taken = objective.factors(batch.mask.sum(dim=1)), []
    for step in range(WARM_UP + steps):
        began = time.perf_counter()
        result = accumulate_gradient(policy, objective, batch, factors, learning, 1.0, on_policy=True)
        guarded_step(optimizer, -result.objective.sum().item(), 1e-5, 1.0, seed=step)
        if step >= WARM_UP:
            taken.append(time.perf_counter() - began)
    return taken


def as_worker(arguments: argparse.Namespace) -> None:
    os.sched_setaffinity(0, {int(os.environ.get("RANK", "0"))})
    ranks.start("cpu")
    taken = measure(arguments.model, arguments.rows, arguments.length, arguments.steps)
    if ranks.is_first():
        arguments.out.write_text(json.dumps(taken))
    ranks.stop()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", help="folder of a Hugging Face model; default: a random one of 1 M parameters")
    parser.add_argument("--rows", type=int, default=64, help="completions of the whole minibatch")
    parser.add_argument("--length", type=int, default=64, help="tokens of the longest completion")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.out:
        as_worker(arguments)
        return
    if len(os.sched_getaffinity(0)) < 2 or arguments.rows % (2 * GROUP):
        sys.exit(f"two cores are needed, and rows that divide by {2 * GROUP}")
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seconds.json"
        sizes = ["--length", str(arguments.length), "--steps", str(arguments.steps), "--out", str(out)]
        sizes += ["--model", arguments.model] if arguments.model else []
        command = [sys.executable, "-m", "tests.benchmarks.ranks", *sizes, "--rows"]
        for _ in range(TURNS):
            run_ranks([*command, str(arguments.rows)], 2)
            seconds[2] += json.loads(out.read_text())
            subprocess.run([*command, str(arguments.rows // 2)], check=True)
            seconds[1] += json.loads(out.read_text())
    two, alone = (statistics.median(seconds[count]) for count in (2, 1))
    print(f"two ranks {two * 1000:.1f} ms, one process on half {alone * 1000:.1f} ms, ratio {two / alone:.3f}")


if __name__ == "__main__":
    main()
