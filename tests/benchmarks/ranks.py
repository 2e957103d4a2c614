"""Measure the cost of ranks: a step on two ranks with a core each, and a process with one core and half of the minibatch.

    python -m tests.benchmarks.ranks                          # a model of 1 M parameters
    python -m tests.benchmarks.ranks --model FOLDER --rows 16 --length 64 --steps 5

Needs two free cores. A step is the gradient of a minibatch, its clipping and AdamW. Each of the two processes also has the whole
model for itself, so that the following steps are measured in turn on the same cores:

    alone    one process, while the other one waits
    at once  both processes, each for itself; they compete for caches and memory, and the slower one is measured
    ranks    both processes as ranks, with twice the minibatch

Medians of the times and of the ratios of each turn, with their quartiles, are printed and written to
`tests/benchmarks/results/`. Without any cost, the ratios are 1.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.distributed as dist

from sspo_cli import ranks
from sspo_cli.config import LearningOptions, ModelOptions, TinyModelOptions
from sspo_cli.objectives import build_objective
from sspo_cli.policy.batch import Batch, collate
from sspo_cli.policy.learner import accumulate_gradient
from sspo_cli.policy.model import load_policy
from sspo_cli.policy.optimizer import adamw, guarded_step
from sspo_cli.ranks.place import here
from sspo_cli.supervisor import run_ranks
from sspo_cli.types import Completion, Group, Problem, Prompt, Reward
from tests.benchmarks.against_trl import write

ONE_MILLION = TinyModelOptions(hidden_size=128, layers=6, heads=2, intermediate_size=256)
GROUP, WARM_UP = 8, 2


def minibatch(rows: int, length: int) -> Batch:
    """Groups whose completions have between half of `length` and all of it; the same lengths in every group."""
    draw = torch.Generator().manual_seed(1)

    def ids(count: int) -> list[int]:
        return torch.randint(4, 90, (count,), generator=draw).tolist()

    groups = []
    for number in range(rows // GROUP):
        written = [ids(length - length // 2 * place // GROUP) for place in range(GROUP)]
        completions = [Completion(tokens, [-1.0] * len(tokens), "", truncated=False) for tokens in written]
        prompt = Prompt(Problem(str(number), "", "", "test"), "", ids(16))
        groups.append(Group(prompt, completions, [Reward(0.0, 0.0, None, "ok")] * GROUP))
    return collate(groups, torch.randn(len(groups), GROUP, generator=draw), mask_truncated=False)


class Learner:
    """A policy with its optimizer."""

    def __init__(self, model: str | None, length: int) -> None:
        options = ModelOptions(name=model) if model else ModelOptions(tiny=ONE_MILLION)
        self.policy = load_policy(options, torch.device("cpu"))
        self.optimizer = adamw(self.policy.parameters, (0.9, 0.95), 0.0, eight_bit=False)
        self.objective = build_objective(method="sspo", gate="atanlog", token_limit=length)

    def step(self, batch: Batch) -> None:
        factors = self.objective.factors(batch.mask.sum(dim=1))
        result = accumulate_gradient(
            self.policy, self.objective, batch, factors, LearningOptions(), 1.0, on_policy=True
        )
        guarded_step(self.optimizer, -result.objective.sum().item(), 1e-5, 1.0, seed=0)


@contextmanager
def as_single_process() -> Iterator[None]:
    """Compute as a process without other ranks."""
    place = here.rank, here.size
    here.rank, here.size = 0, 1
    try:
        yield
    finally:
        here.rank, here.size = place


def measure(model: str | None, rows: int, length: int, steps: int) -> dict[str, list[float]]:
    """Return the seconds of each step of each kind, after the first steps."""
    torch.set_num_threads(1)
    single = Learner(model, length)
    ranks.start("cpu")
    shared = Learner(model, length)
    whole = minibatch(rows, length)
    half = whole.select(torch.arange(rows // 2))
    seconds: dict[str, list[float]] = {"alone": [], "at once": [], "ranks": []}
    for step in range(WARM_UP + steps):
        for kind, taken in seconds.items():
            dist.barrier()
            began = time.perf_counter()
            if kind == "ranks":
                shared.step(whole)
            elif kind == "at once" or ranks.is_first():
                with as_single_process():
                    single.step(half)
            if kind == "at once":
                dist.barrier()
            if step >= WARM_UP:
                taken.append(time.perf_counter() - began)
    return seconds


def report(model: str, workload: str, seconds: dict[str, list[float]]) -> None:
    """Print the table, and write it to the results."""
    row = {f"{kind}, ms": quartiles([1000 * value for value in taken], "{:.0f}") for kind, taken in seconds.items()}
    for kind in ("at once", "alone"):
        ratios = [ours / theirs for ours, theirs in zip(seconds["ranks"], seconds[kind], strict=True)]
        row[f"ranks / {kind}"] = quartiles(ratios, "{:.2f}")
    write(f"ranks-{model}", [{"model": model, "minibatch": workload, **row}])


def quartiles(values: Sequence[float], form: str) -> str:
    """Format the median and the quartiles."""
    low, middle, high = (form.format(value) for value in statistics.quantiles(values, n=4))
    return f"{middle} ({low}–{high})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", help="folder of a Hugging Face model; default: a random one of 1 M parameters")
    parser.add_argument("--rows", type=int, default=64, help="completions of the whole minibatch")
    parser.add_argument("--length", type=int, default=64, help="tokens of the longest completion")
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    if arguments.rows % (2 * GROUP) or arguments.steps < 2:
        sys.exit(f"--rows must be a multiple of {2 * GROUP}, and --steps at least 2")
    if "RANK" in os.environ:
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(os.environ["RANK"])]})
        seconds = measure(**vars(arguments))
        if ranks.is_first():
            model = Path(arguments.model).name if arguments.model else "1M"
            report(model, f"{arguments.rows} × {arguments.length} tokens", seconds)
        ranks.stop()
    elif len(os.sched_getaffinity(0)) < 2:
        sys.exit("two cores are needed")
    else:
        run_ranks([sys.executable, "-m", "tests.benchmarks.ranks", *sys.argv[1:]], 2)


if __name__ == "__main__":
    main()
