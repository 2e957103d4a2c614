"""Whole runs on vLLM, through the command line."""

import gc
import json
import sys
from pathlib import Path

import pytest
import torch
from vllm_cases import differences, needs_vllm

from sspo_cli.config import ModelOptions, VllmOptions
from sspo_cli.policy.model import load_policy
from sspo_cli.rollout.engine import Sampling
from sspo_cli.rollout.vllm_engine import VllmEngine
from sspo_cli.tasks import load_problems
from sspo_cli.tasks.prompts import render

sys.path.insert(0, str(Path(__file__).parents[1]))
from commands import sspo

pytestmark = needs_vllm
SHORT = {
    "rollout__engine": "vllm",
    "rollout__vllm__kv_cache_gib": 0.06,
    "rollout__prompts": 4,
    "steps": 4,
    "cold_start__steps": 150,
    "cold_start__warmup_steps": 10,
    "evaluation__benchmarks": "[{name: arithmetic, split: test, limit: 16}]",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    done = sspo("train", "--run", "a", "--runs-dir", runs, **SHORT)
    assert done.returncode == 0, done.stderr
    gc.collect()
    return runs


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_samples_with_vllm_and_its_metrics_hold_both_sides_of_the_probe(runs):
    metrics = rows(runs / "a" / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4]
    for row in metrics:
        assert row["sampler/mismatch_max"] < 1e-3
        if row["minibatch"] == 1:  # one probe for each rollout batch
            assert row["sampler/probe_policy"] == pytest.approx(row["sampler/probe_sampler"], abs=1e-4)
        else:
            assert "sampler/probe_policy" not in row
    assert len({row["sampler/probe_policy"] for row in metrics[::2]}) == 2  # the weights did change between the two


def test_a_cache_too_small_is_told_before_the_cold_start(tmp_path):
    done = sspo(
        "train", "--runs-dir", tmp_path, **SHORT | {"rollout__vllm__kv_cache_gib": 0.0005}, rollout__max_new_tokens=500
    )
    assert done.returncode == 1
    assert "vLLM's cache has room for sequences of" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "cold-starts").exists()
    gc.collect()


def test_eval_on_vllm_finds_what_the_run_measured(runs):
    measured = json.loads((runs / "a" / "eval" / "summary.json").read_text())[-1]
    done = sspo("eval", "a", "--runs-dir", runs)
    assert done.returncode == 0, done.stderr
    again = json.loads((runs / "a" / "eval" / "summary.json").read_text())[-1]
    assert (again["step"], again["correct"], again["format"]) == (4, measured["correct"], measured["format"])
    gc.collect()


def test_a_run_on_vllm_learns_as_the_torch_engine_s_does(tmp_path):
    """The embedded task from the same cold start, shorter than the demo: mean rewards of both rise alike."""
    options = {"steps": 24, "evaluation__benchmarks": SHORT["evaluation__benchmarks"]}
    first, last = {}, {}
    for engine in ("torch", "vllm"):
        done = sspo("train", "--run", engine, "--runs-dir", tmp_path, rollout__engine=engine, **options)
        assert done.returncode == 0, done.stderr
        rewards = [row["reward/mean"] for row in rows(tmp_path / engine / "metrics.jsonl")]
        first[engine], last[engine] = sum(rewards[:4]) / 4, sum(rewards[-8:]) / 8
        gc.collect()
    assert last["vllm"] > first["vllm"] + 0.3  # seen: 1.0 and 1.5
    assert last["vllm"] == pytest.approx(last["torch"], abs=0.15)


def test_in_bfloat16_the_log_probabilities_of_a_policy_that_was_taught_agree(runs, monkeypatch):
    policy = load_policy(ModelOptions(dtype="bfloat16"), torch.device("cpu"), runs / "a" / "checkpoints" / "step-4")
    prompts = [
        render(problem, "plain", policy.tokenizer).token_ids
        for problem in load_problems("arithmetic", path=None, split="train", limit=16)
    ]
    engine = VllmEngine(policy, VllmOptions(kv_cache_gib=0.06), 64, 1.0)
    engine.sync(policy)
    groups = engine.generate(prompts, 4, Sampling(1.0, 48, 3))
    assert differences(policy, groups, prompts=prompts).median() <= 2e-3
    del engine
    gc.collect()
