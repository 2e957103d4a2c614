"""Run sspo in a child process: `python -m tests.benchmarks.by_sspo OPTIONS OUT RUNS`, with the options as JSON."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from sspo_cli import session, train
from sspo_cli.config import RunOptions
from sspo_cli.memory import device_here
from sspo_cli.memory.estimate import estimate
from sspo_cli.memory.shape import read_shape
from sspo_cli.policy.model import resolve_device
from sspo_cli.rollout.torch_engine import TorchEngine
from sspo_cli.rollout.vllm_engine import VllmEngine
from sspo_cli.tracking.tracker import Tracker
from tests.benchmarks.workloads import LORA_RANK, MU, PHASES, VLLM_SHARE, Workload, clocks, peak_memory, report

MODEL: dict[str, dict[str, Any]] = {
    "everything": {},
    "lora": {"lora": {"rank": LORA_RANK}, "gradient_checkpointing": True},
    "eight-bit": {"weights": "bfloat16", "gradient_checkpointing": True},
}
QUIET = {"evaluation": {"benchmarks": [], "every": None}, "checkpoint": {"every": 10**6}}


def options_of(workload: Workload, folder: str, steps: int) -> dict[str, Any]:
    return {
        **QUIET,
        "steps": steps,
        "device": workload.device,
        "model": {"name": folder, **MODEL[workload.trains]},
        "prompt": "plain",  # the question alone, as TRL gets it
        "optimizer": {"eight_bit": workload.trains == "eight-bit"},
        "tasks": [{"name": "file", "path": f"{folder}/questions.jsonl"}],
        "rollout": {
            "prompts": workload.prompts,
            "group_size": workload.group_size,
            "max_new_tokens": workload.tokens,
            "engine": "vllm" if workload.vllm else "torch",
            "vllm": {"gpu_memory_utilization": VLLM_SHARE} if workload.vllm else None,
        },
        "learning": {"mu": MU},
        "cold_start": {"steps": 0},
        "objective": {"method": "grpo"},
    }


def main() -> None:
    options, out, runs = RunOptions.model_validate(json.loads(sys.argv[1])), sys.argv[2], Path(sys.argv[3])
    device = resolve_device(options.device).type
    times, rows = [], []
    phases = dict.fromkeys(PHASES, 0.0)  # seconds so far, of the processor or of the GPU
    log = Tracker.log

    def noted(tracker: Tracker, step: int, metrics: Any) -> None:
        log(tracker, step, metrics)
        times.append((*clocks(device), *phases.values()))
        # On a GPU the telemetry has already reset the peak. On a CPU a checkpoint would follow the last step.
        peak = max(row["device/memory"] * 1e9 for row in [*rows, metrics]) if device == "cuda" else peak_memory(device)
        rows.append({**metrics, "memory": peak})

    def timed(owner: Any, name: str, phase: str) -> None:
        function = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            _, start = clocks(device)
            try:
                return function(*args, **kwargs)
            finally:
                phases[phase] += clocks(device)[1] - start

        setattr(owner, name, wrapped)

    def begun(run: Any) -> None:
        times.append((*clocks(device), *phases.values()))
        train.train(run)

    Tracker.log, session.train = noted, begun
    session.check_model = lambda *_, **__: None  # it would run before the first cycle
    train.save_if_due = lambda _: None  # it would run after the last cycle and write up to 90 GB
    timed(VllmEngine if options.rollout.engine == "vllm" else TorchEngine, "generate", "sampling")
    timed(train, "fill_old_logprobs", "old log-probabilities")
    timed(train, "accumulate_gradient", "forward and backward")
    timed(train, "guarded_step", "optimizer")
    session.start_run(options, runs / f"run-{time.time_ns()}", ["benchmark"], keep_going=True)
    phases_of_memory = estimate(
        options, read_shape(options.model), device_here(options, resolve_device(options.device))
    )
    report(
        out, times=times, rows=rows, memory=rows[-1]["memory"], estimate=max(phase.total for phase in phases_of_memory)
    )


if __name__ == "__main__":
    main()
