"""The golden cases and the folder of their recordings. This module imports no torch."""

import json
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).parent / "recorded"
ENVIRONMENT = "environment"  # the file of the package versions and the machine
COLD_START = "cold-start"
COLD_STEPS = 100
COLD_STARTED = "(the model of the shared cold start)"

# The only metrics of a step that differ between runs of the same code.
WALL_TIMES = (
    "time/sampling",
    "time/grading",
    "time/learning",
    "time/step",
    "time/elapsed",
    "time/tokens_per_second",
)

BASE = {
    "steps": 10,
    "answer_timeout": 120,  # a busy machine must not change a reward
    "model.tiny": "{hidden_size: 32, layers: 1, heads: 2, intermediate_size: 48}",
    "tasks": "[{name: arithmetic, limit: 60}]",
    "rollout.prompts": 4,
    "rollout.group_size": 4,
    "rollout.max_new_tokens": 24,
    "rollout.max_rows": 12,  # a rollout is sampled in two parts
    "learning.token_budget": 320,  # a minibatch has several micro-batches
    "prompt": "plain",
    "optimizer.learning_rate": 2e-3,
    "optimizer.schedule": "linear",
    "optimizer.warmup_steps": 3,
    "optimizer.weight_decay": 0.1,
    "optimizer.max_grad_norm": 0.5,
    "cold_start.steps": COLD_STEPS,
    "cold_start.batch_size": 16,
    "cold_start.learning_rate": 2e-2,
    "cold_start.warmup_steps": 5,
    "cold_start.weight_decay": 0.05,
    "evaluation.benchmarks": "[{name: arithmetic, split: test, limit: 10}]",
    "evaluation.every": "null",
    "evaluation.max_new_tokens": 28,
    "checkpoint.every": 10,
}
SSPO = {"objective.method": "sspo", "objective.gate": "atanlog"}
CASES: dict[str, dict[str, Any]] = {
    **{
        f"{method}-mu-{mu}": {"objective.method": method, "learning.mu": mu}
        for method in ("grpo", "gspo", "gmpo", "sapo")
        for mu in (2, 4)
    },
    **{f"sspo-mu-{mu}": {**SSPO, "learning.mu": mu} for mu in (2, 4)},
    "lora": {**SSPO, "model.name": COLD_STARTED, "model.lora": "{rank: 4, alpha: 16}", "cold_start.steps": 10},
    # The sampler and the policy agree, so their ratio is 1, and this cap halves every advantage.
    "importance-cap": {**SSPO, "learning.importance_cap": 0.5},
    "std-none": {**SSPO, "learning.std": "none"},
    "mask-truncated": {**SSPO, "learning.mask_truncated": "true", "rollout.max_new_tokens": 16},
    "temperature-0.7": {**SSPO, "rollout.temperature": 0.7, "evaluation.samples": 2, "evaluation.temperature": 0.6},
    "two-tasks": {
        **SSPO,
        "model.name": COLD_STARTED,
        "cold_start.steps": 0,
        "tasks": "[{name: arithmetic, limit: 60, weight: 3}, {name: arithmetic, split: test, limit: 40}]",
        "evaluation.validation": 6,
        "evaluation.decontaminate": "false",  # the second task has the problems of the benchmark
        "evaluation.every": 4,
    },
}


def read(name: str, folder: Path = RECORDED) -> Any:
    """Return the recording of a case, of the cold start or of the environment."""
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
