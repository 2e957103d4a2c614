"""Compare the speed of sspo with that of TRL's GRPOTrainer on the same work: `make benchmark`.

Both programs run as child processes with one thread each, alternately and several times. A cycle is a rollout batch and the two
optimizer steps on it. The figures are medians over the cycles of all repeats, without the first cycle of each process.
Processor time is given next to wall time, because a busy machine stretches wall time; on a GPU both columns are wall time. The
tables are printed and written to `tests/benchmarks/results/`.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean, median
from typing import Any

from tabulate import tabulate

from tests.benchmarks.by_sspo import QUIET, options_of
from tests.benchmarks.workloads import CPU, GPU, MU, PHASES, VLLM_SHARE, Workload, build, cycles

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
REAL_STEPS = 60
LAST = 5  # rollout batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [workload.name for workload in CPU + GPU]
    parser.add_argument("--trl", default=ROOT / ".venv-trl/bin/python", type=Path, help="Python of TRL's environment")
    parser.add_argument("--repeats", default=3, type=int)
    parser.add_argument("--cycles", default=4, type=int, help="of each process, the first is left out")
    parser.add_argument(
        "--folder", type=Path, help="keep the models here, for another call; default: a temporary folder"
    )
    parser.add_argument("--workloads", nargs="*", choices=names, default=[workload.name for workload in CPU])
    parser.add_argument(
        "--no-real-task", action="store_true", help=f"leave out {REAL_STEPS} steps of the embedded task"
    )
    given = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        chosen = [workload for workload in CPU + GPU if workload.name in given.workloads]
        measured = [compare(workload, given, Path(folder)) for workload in chosen]
        for prefix in ("", "real-model-", "gpu-"):
            part = [both for workload, both in zip(chosen, measured, strict=True) if kind_of(workload) == prefix]
            if part:
                write(f"{prefix}workloads", [row for row, _ in part])
                write(f"{prefix}phases", [where for _, where in part])
        if not given.no_real_task:
            row, where = real_task(given, Path(folder))
            write("real-task", [row])
            write("real-task-phases", [where])


def kind_of(workload: Workload) -> str:
    """Return the prefix of the file names of the workload's results."""
    return "gpu-" if workload.device == "cuda" else "real-model-" if workload.real else ""


def compare(workload: Workload, given: argparse.Namespace, parent: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure a workload; return its row of the table of workloads and its row of the table of phases.

    Times are in seconds per cycle, memory is in GiB.
    """
    folder = (given.folder or parent) / re.sub(r"[^\w.]+", "-", workload.name)
    build(workload, folder)
    steps = MU * given.cycles
    questions = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    settings = {
        "model": str(folder),
        "questions": questions[: workload.prompts * given.cycles],
        "graded": False,
        "device": workload.device,
        "trains": workload.trains,
        "vllm": {"vllm_gpu_memory_utilization": VLLM_SHARE, "vllm_enable_sleep_mode": True} if workload.vllm else {},
        "config": trl_sizes(workload.prompts, workload.group_size, workload.tokens, steps, workload.micro_batch),
    }
    ours, theirs, floors = [], [], []
    for _ in range(given.repeats):
        ours.append(child(sys.executable, "by_sspo", options_of(workload, str(folder), steps), parent / "runs"))
        theirs.append(child(given.trl, "by_trl", settings))
        if (
            workload.trains == "everything" and not workload.real and not workload.vllm
        ):  # the bare passes assume a plain model
            floors.append(child(sys.executable, "floors", str(folder), 2))
    repeats = [(cycles(one["times"]), cycles(another["times"])) for one, another in zip(ours, theirs, strict=True)]
    sspo, trl = ([cycle for repeat in repeats for cycle in repeat[side]] for side in (0, 1))
    row = {
        "workload": workload.name,
        "sspo": spread(sspo, 0),
        "TRL": spread(trl, 0),
        "ratio": ratio(sspo, trl, 0),
        "ratio, processor": ratio(sspo, trl, 1),
    }
    if not workload.vllm:  # torch also counts the memory of a sleeping vLLM, although that memory is free
        memory, trl_memory = (median(one["memory"] for one in run) / 2**30 for run in (ours, theirs))
        estimated = {"sspo, GiB estimated": median(one["estimate"] for one in ours) / 2**30}
        row |= {"GiB sspo": memory, "GiB TRL": trl_memory, "ratio, memory": memory / trl_memory, **estimated}
    if workload.device == "cuda":
        row |= {
            "ratios of the repeats": between([ratio(*repeat, 0) for repeat in repeats]),
            "sspo, FLOP utilization of learning": median(
                row["device/flop_utilization"] for one in ours for row in one["rows"][MU:]
            ),
        }
    if workload.real:  # large enough for the spread to matter, and its completions may end early
        row |= {
            "sspo, processor": spread(sspo, 1),
            "TRL, processor": spread(trl, 1),
            "ratios of the repeats, processor": between([ratio(*repeat, 1) for repeat in repeats]),
            "tokens a completion, sspo": fmean(row["completions/length"] for one in ours for row in one["rows"]),
            "tokens a completion, TRL": fmean(length for one in theirs for length in one["lengths"]),
        }
    if floors:
        floor = {name: [time for one in floors for time in one[name]] for name in ("learner", "sampler", "generate")}
        row |= {
            "learner / floor": median(sum(cycle[3:]) for cycle in sspo) / middle(floor["learner"], 1),
            "sampler / floor": middle(sspo, 2) / middle(floor["sampler"], 1),
            "generate / sampler": middle(floor["generate"], 1) / middle(sspo, 2),
            "GiB floor": median(one["memory"] for one in floors) / 2**30,
            "of it weights, gradients, Adam": 4 * floors[0]["weights"] / 2**30,
        }
    return row, phases_of(workload.name, sspo)


def real_task(given: argparse.Namespace, parent: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure the embedded task from the same cold start, with completions that end by themselves; plot both reward curves.

    Returns its row of the table of workloads and its row of the table of phases.
    """
    from sspo_cli.config import RunOptions
    from sspo_cli.seeds import derive_seed
    from sspo_cli.tasks import load_problems
    from sspo_cli.tasks.mixture import problem_stream

    options = {**QUIET, "device": "cpu", "steps": REAL_STEPS, "objective": {"method": "grpo"}}
    defaults = RunOptions.model_validate(options)
    rollout, runs = defaults.rollout, parent / "real"
    stream = problem_stream([load_problems("arithmetic", split="train")], [1.0], derive_seed(defaults.seed, "problems"))
    drawn = islice(stream, REAL_STEPS // MU * rollout.prompts)
    questions = [{"question": problem.question, "answer": problem.answer} for problem in drawn]
    ours, theirs, samplers = [], [], []
    for _ in range(given.repeats):
        ours.append(child(sys.executable, "by_sspo", options, runs))
        (cold,) = (runs / "cold-starts").glob("*/step-*")
        settings = {
            "model": str(cold),
            "questions": questions,
            "graded": True,
            "device": "cpu",
            "trains": "everything",
            "vllm": {},
            "config": trl_sizes(
                rollout.prompts,
                rollout.group_size,
                rollout.max_new_tokens,
                REAL_STEPS,
                micro_batch=rollout.prompts * rollout.group_size // MU,
            ),
        }
        theirs.append(child(given.trl, "by_trl", settings))
        samplers.append(child(sys.executable, "samplers", str(cold)))
    sspo, trl = (
        [[b - a for a, b in zip(o["times"][0], o["times"][-1], strict=True)] for o in run] for run in (ours, theirs)
    )
    rewards = [by_rollout([row["reward/mean"] for row in one["rows"]]) for one in ours]
    trl_rewards = [one["rewards"] for one in theirs]
    draw_rewards(rewards, trl_rewards)
    sampler, generate = ([time for one in samplers for time in one[name]] for name in ("sampler", "generate"))
    name = f"embedded task, {REAL_STEPS} steps"
    row = {
        "workload": name,
        "sspo": spread(sspo, 0),
        "TRL": spread(trl, 0),
        "ratio": ratio(sspo, trl, 0),
        "ratio, processor": ratio(sspo, trl, 1),
        "tokens a completion, sspo": median(row["completions/length"] for one in ours for row in one["rows"]),
        "tokens a completion, TRL": median(length for one in theirs for length in one["lengths"]),
        "last rewards, sspo": fmean(reward for run in rewards for reward in run[-LAST:]),
        "last rewards, TRL": fmean(reward for run in trl_rewards for reward in run[-LAST:]),
        "generate / sampler": middle(generate, 1) / middle(sampler, 1),
    }
    return row, phases_of(name, sspo)


def phases_of(name: str, sspo: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return the row of the table of phases: the median share of each phase in a cycle or in a whole run, in %.

    Shares are of processor time, or of wall time on a GPU.
    """
    shares = [[100 * time / processor for time in phases] for _, processor, *phases in sspo]
    medians = {phase: median(share[column] for share in shares) for column, phase in enumerate(PHASES)}
    return {
        "workload": name,
        "s of processor": middle(sspo, 1),
        **medians,
        "rest": median(100 - sum(share) for share in shares),
    }


def trl_sizes(prompts: int, group_size: int, tokens: int, steps: int, micro_batch: int) -> dict[str, int]:
    in_minibatch = prompts * group_size // MU // micro_batch
    return {
        "max_steps": steps,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": in_minibatch,
        "steps_per_generation": MU * in_minibatch,
        "num_generations": group_size,
        "max_completion_length": tokens,
    }


def child(python: str | Path, module: str, options: Any, *more: object) -> dict[str, Any]:
    """Run `tests.benchmarks.<module>` with `python` and one thread; return what it reports."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with tempfile.NamedTemporaryFile() as out:
        first = options if isinstance(options, str) else json.dumps(options)
        command = [str(python), "-m", f"tests.benchmarks.{module}", first, out.name, *map(str, more)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{module} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        measured: dict[str, Any] = json.loads(Path(out.name).read_text())
    if "times" in measured:  # printed before the other children start, because one of them may fail
        print(
            module, "cycles of", ", ".join(f"{seconds:.2f} s" for seconds, *_ in cycles(measured["times"])), flush=True
        )
    return measured


def middle(times: Sequence[Sequence[float]], column: int) -> float:
    return median(time[column] for time in times)


def ratio(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], column: int) -> float:
    return middle(ours, column) / middle(theirs, column)


def between(ratios: Sequence[float]) -> str:
    return f"{min(ratios):.2f}–{max(ratios):.2f}"


def spread(times: Sequence[Sequence[float]], column: int) -> str:
    values = [time[column] for time in times]
    return f"{median(values):.2f} s ({min(values):.2f}–{max(values):.2f})"


def by_rollout(rewards: Sequence[float]) -> list[float]:
    """Average the rewards, which sspo logs per minibatch, over each rollout batch, as TRL logs them."""
    return [fmean(rewards[start : start + MU]) for start in range(0, len(rewards), MU)]


def draw_rewards(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> None:
    """Plot the mean reward of each rollout batch for every run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for name, color, runs in (("sspo", "C0", ours), ("TRL", "C1", theirs)):
        for number, rewards in enumerate(runs):
            axes.plot(
                [MU * batch for batch in range(len(rewards))],
                rewards,
                color=color,
                alpha=0.7,
                label=name if number == 0 else None,
            )
    axes.set(
        xlabel="optimizer steps before",
        ylabel="mean reward of a rollout batch",
        title="The embedded task from the same cold start",
    )
    axes.legend()
    figure.savefig(RESULTS / "real-task.svg")
    plt.close(figure)


def write(name: str, rows: list[dict[str, Any]]) -> None:
    table = tabulate(rows, headers="keys", tablefmt="github", floatfmt=".2f")
    print(table, flush=True)
    (RESULTS / f"{name}.md").write_text(table + "\n")
    (RESULTS / f"{name}.json").write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
