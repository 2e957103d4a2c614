"""A step of training on vLLM with the real model that `make test-real` builds, SmolLM2-135M-Instruct (Q4_1, dequantized)."""

import gc
import json
import sys
from pathlib import Path

import pytest
from vllm_cases import needs_vllm

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "real_model"))
from commands import sspo
from smollm2 import NAME, folder

pytestmark = needs_vllm


@pytest.mark.long
def test_a_step_of_a_real_model(tmp_path):
    if not folder().exists():
        pytest.skip(f"{NAME} is not here; `make test-real` builds it")
    problems = tmp_path / "sums.jsonl"
    problems.write_text("".join(json.dumps({"question": f"{n}+1?", "answer": str(n + 1)}) + "\n" for n in range(8)))
    done = sspo(
        "train",
        "--runs-dir",
        tmp_path,
        "--run",
        "a",
        model__name=folder(),
        model__dtype="float32",
        tasks=f"[{{name: file, path: {problems}}}]",
        evaluation__benchmarks="[]",
        cold_start__steps=0,
        steps=1,
        learning__mu=1,
        rollout__engine="vllm",
        rollout__vllm__kv_cache_gib=0.5,
        rollout__prompts=2,
        rollout__group_size=2,
        rollout__max_new_tokens=16,
    )
    gc.collect()
    assert done.returncode == 0, done.stderr
    (step,) = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert step["sampler/probe_drift"] <= 1e-4  # measured: 5e-6
    assert step["sampler/mismatch_max"] <= 1e-3
