"""Whole runs on vLLM, through the command line."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from vllm_cases import PADDED, differences, needs_vllm, tiny_policy

from sspo_cli.config import ModelOptions, VllmOptions
from sspo_cli.policy.model import load_policy
from sspo_cli.rollout.engine import Request, Sampling
from sspo_cli.rollout.torch_engine import TorchEngine
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
    "steps": 6,
    "checkpoint__every": 2,
    "checkpoint__keep": 9,
    "cold_start__steps": 150,
    "cold_start__warmup_steps": 10,
    "evaluation__benchmarks": "[{name: arithmetic, split: test, limit: 64}]",
    "evaluation__every": 2,
    "evaluation__validation": 16,
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
    assert [row["step"] for row in metrics] == [1, 2, 3, 4, 5, 6]
    for row in metrics:
        assert row["sampler/mismatch_max"] < 1e-3
        if row["minibatch"] == 1:  # one probe for each rollout batch
            assert row["sampler/probe_policy"] == pytest.approx(row["sampler/probe_sampler"], abs=1e-4)
        else:
            assert "sampler/probe_policy" not in row
    assert len({row["sampler/probe_policy"] for row in metrics[::2]}) == 3  # the weights changed between rollouts


def test_a_cache_too_small_is_reported_before_the_cold_start(tmp_path):
    done = sspo(
        "train", "--runs-dir", tmp_path, **SHORT | {"rollout__vllm__kv_cache_gib": 0.0005}, rollout__max_new_tokens=500
    )
    assert done.returncode == 1
    assert "vLLM's cache has room for sequences of" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "cold-starts").exists()
    gc.collect()


def test_eval_on_vllm_finds_what_the_run_measured(runs):
    measured = json.loads((runs / "a" / "eval" / "summary.json").read_text())[-1]
    done = sspo("eval", "a", "--runs-dir", runs, "--again")
    assert done.returncode == 0, done.stderr
    again = json.loads((runs / "a" / "eval" / "summary.json").read_text())[-1]
    assert (again["step"], again["correct"], again["format"]) == (6, measured["correct"], measured["format"])
    gc.collect()


@pytest.fixture(scope="module")
def by_torch(runs):
    """Train a run with the torch engine and return its folder."""
    options = {name: value for name, value in SHORT.items() if not name.startswith("rollout__vllm")}
    done = sspo("train", "--run", "torch", "--runs-dir", runs, **options | {"rollout__engine": "torch"})
    assert done.returncode == 0, done.stderr
    return runs / "torch"


@pytest.mark.parametrize("which", ["last and another one", "best"])
def test_a_run_of_the_torch_engine_is_measured_alike_with_vllm(by_torch, monkeypatch, which):
    if which == "best":
        targets = ["torch", "--checkpoint", "best"]
        steps = [json.loads((by_torch / "checkpoints" / "best.json").read_text())["step"]]
    else:
        targets = ["torch", by_torch / "checkpoints" / "step-2"]  # each target gets its own engine, in turn
        steps = [SHORT["steps"], 2]

    def measured(engine):
        rows = json.loads((by_torch / "eval" / "summary.json").read_text())
        return {row["step"]: row for row in rows if row["benchmark"] == "arithmetic" and row["engine"] == engine}

    before = measured("torch")
    monkeypatch.setattr(TorchEngine, "generate", None)
    done = sspo("eval", *targets, "--runs-dir", by_torch.parent, "--engine", "vllm", "-b", "arithmetic", "--again")
    gc.collect()
    assert done.returncode == 0, done.stderr
    after = measured("vLLM")  # another sampler adds rows and replaces none
    assert set(steps) <= set(after)
    conditions = ("split", "n", "samples", "temperature", "max_new_tokens", "prompt", "seed", "checkpoint")
    for step in steps:
        recorded = [after[step][name] for name in conditions]
        assert recorded == [before[step][name] for name in conditions]
        assert recorded == ["test", 64, 1, 0.0, 64, "plain", 0, f"step-{step}"]
        assert abs(after[step]["correct"] - before[step]["correct"]) <= 1
        assert f"64 problems, greedy, at most 64 tokens, prompt plain, checkpoint step-{step}" in done.stdout


def stopped(runs, number, ready):
    """Start or resume the run `stopped` in a process and send it signal `number` when `ready(stdout)` is true.

    Checks that the process ends cleanly, and returns the step that it saved.
    """
    sets = [part for key, value in SHORT.items() for part in ("-s", f"{key.replace('__', '.')}={value}")]
    more = ["--resume"] if (runs / "stopped").exists() else sets
    out, err = (runs.parent / f"stopped.{name}" for name in ("out", "err"))
    with out.open("w") as stdout, err.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "sspo_cli", "train", "--run", "stopped", "--runs-dir", runs, *more],
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        while not ready(out.read_text()):
            assert process.poll() is None, err.read_text()
            time.sleep(0.01)
        os.killpg(process.pid, number)  # as Ctrl-C does
        process.wait(timeout=60)
    assert process.returncode == 130, err.read_text()
    assert "sspo: stopped; the state is saved; `sspo train --resume --run " in err.read_text()
    assert "Traceback" not in out.read_text() + err.read_text()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    status = json.loads((runs / "stopped" / "status.json").read_text())
    assert status["state"] == "interrupted"
    assert (runs / "stopped" / "checkpoints" / f"step-{status['step']}").is_dir()
    return status["step"]


def test_a_signal_ends_a_run_with_its_state_saved_and_no_process_left_and_it_continues(runs):
    """Send SIGTERM in the middle of the steps, and SIGINT as soon as the resumed run has its engine.

    Starting the engine must not replace the run's signal handlers.
    """
    metrics = runs / "stopped" / "metrics.jsonl"
    first = stopped(runs, signal.SIGTERM, lambda said: metrics.exists())
    assert 1 <= first < SHORT["steps"] - 1
    assert first <= stopped(runs, signal.SIGINT, lambda said: "sampler: vLLM" in said) < SHORT["steps"]
    done = sspo("train", "--run", "stopped", "--resume", "--runs-dir", runs)
    assert done.returncode == 0, done.stderr
    gc.collect()
    whole, interrupted = (
        [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows(path)]
        for path in (runs / "a" / "metrics.jsonl", metrics)
    )
    assert interrupted == whole
    for name in ("model.safetensors", "config.json"):
        last = Path("checkpoints") / f"step-{SHORT['steps']}" / name
        assert (runs / "stopped" / last).read_bytes() == (runs / "a" / last).read_bytes()


def test_a_run_with_more_ids_than_the_tokenizer_knows(tmp_path):
    policy = tiny_policy(vocabulary=PADDED)
    policy.save(tmp_path / "model")
    task = {"tasks": "[arithmetic]", "prompt": "plain", "rollout__max_new_tokens": 64}
    short = {name: value for name, value in SHORT.items() if not name.startswith("cold_start")}
    options = short | task | {"model__name": tmp_path / "model", "steps": 2}
    done = sspo("train", "--run", "a", "--runs-dir", tmp_path, **options)
    assert done.returncode == 0, done.stderr
    assert all(row["sampler/mismatch_max"] < 1e-3 for row in rows(tmp_path / "a" / "metrics.jsonl"))
    kept = rows(tmp_path / "a" / "completions.jsonl")
    assert all("".join(row["pieces"]) == row["completion"] for row in kept)
    assert all(len(row["pieces"]) == row["tokens"] for row in kept)
    assert any("" in row["pieces"][:-1] for row in kept)
    gc.collect()


@pytest.mark.long
def test_a_run_on_vllm_learns_as_the_torch_engine_s_does(tmp_path):
    """Train the embedded task from one cold start with both engines: their mean rewards rise alike."""
    options = {"steps": 24, "cold_start__steps": 400, "evaluation__benchmarks": "[]"}
    first, last = {}, {}
    for engine in ("torch", "vllm"):
        done = sspo("train", "--run", engine, "--runs-dir", tmp_path, rollout__engine=engine, **options)
        assert done.returncode == 0, done.stderr
        rewards = [row["reward/mean"] for row in rows(tmp_path / engine / "metrics.jsonl")]
        first[engine], last[engine] = sum(rewards[:4]) / 4, sum(rewards[-8:]) / 8
        gc.collect()
    assert last["vllm"] > first["vllm"] + 0.2  # measured: 0.65 and 1.0
    assert last["vllm"] == pytest.approx(last["torch"], abs=0.15)


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_in_bfloat16_the_log_probabilities_of_a_policy_that_was_taught_agree(runs, weights):
    options = ModelOptions(dtype="bfloat16", weights=weights)
    policy = load_policy(options, torch.device("cpu"), runs / "a" / "checkpoints" / "step-6")
    prompts = [
        render(problem, "plain", policy.tokenizer).token_ids
        for problem in load_problems("arithmetic", path=None, split="train", limit=16)
    ]
    engine = VllmEngine(policy, VllmOptions(kv_cache_gib=0.06), 64, 1.0)
    engine.sync(policy)
    groups = engine.generate(Request(prompts, 4, Sampling(1.0, 48, 3)))
    assert differences(policy, groups, prompts=prompts).median() <= 2e-3
    del engine
    gc.collect()
