"""Grids of trials: what they expand to, and their continuation by a second call."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import sspo
from forked import Captured

from sspo_cli.config import RunOptions
from sspo_cli.errors import UserError
from sspo_cli.sweep import load_sweep

SWEEP = """
options:
  steps: 4
  model.tiny.hidden_size: 32
  model.tiny.heads: 1
  model.tiny.layers: 1
  rollout.prompts: 4
  rollout.group_size: 4
  rollout.max_new_tokens: 16
  cold_start.steps: 10
  tasks: [{name: arithmetic, limit: 50}]
  evaluation.benchmarks: [{name: arithmetic, split: test, limit: 10}]
seeds: [0, 1]
blocks:
  - options: {objective.method: grpo}
  - options: {objective.method: sspo}
"""


def load(tmp_path: Path, text: str, *overrides: str) -> list:
    (tmp_path / "sweep.yaml").write_text(text)
    return load_sweep(tmp_path / "sweep.yaml", overrides, tmp_path / "runs")


def test_grids_are_crossed_zips_are_not_and_blocks_and_seeds_repeat(tmp_path):
    text = """
seeds: [0, 1]
grid: {optimizer.learning_rate: [1e-4, 2e-4]}
blocks:
  - options: {objective.method: sspo}
    zip: [{objective.tau_neg: [0.3, 0.6], objective.tau_pos: [0.2, 0.5]}]
  - options: {objective.method: grpo}
"""
    trials = load(tmp_path, text)
    found = {
        (t.options.objective.method, t.options.objective.tau_neg, t.options.optimizer.learning_rate, t.options.seed)
        for t in trials
    }
    assert found == {
        (method, tau, rate, seed)
        for method, tau in (("sspo", 0.3), ("sspo", 0.6), ("grpo", None))
        for rate in (1e-4, 2e-4)
        for seed in (0, 1)
    }
    assert {t.options.objective.tau_pos for t in trials if t.options.objective.tau_neg == 0.6} == {0.5}
    assert len(trials) == len({t.name for t in trials}) == 12


def test_a_block_is_over_the_sweep_and_the_sweep_over_its_base(tmp_path):
    (tmp_path / "base.yaml").write_text("steps: 3\nlearning: {mu: 4, epochs: 2}\n")
    text = """
base: [base.yaml]
options: {learning.mu: 8, rollout.group_size: 4}
blocks:
  - options: {rollout.group_size: 2}
  - grid: {rollout.group_size: [5, 6]}
  - {}
"""
    trials = load(tmp_path, text)
    assert [t.options.rollout.group_size for t in trials] == [2, 5, 6, 4]
    assert {(t.options.steps, t.options.learning.mu, t.options.learning.epochs) for t in trials} == {(3, 8, 2)}


def test_an_override_of_what_varies_leaves_one_trial_with_a_true_name(tmp_path):
    text = "zip: [{objective.tau_neg: [0.3, 0.6], objective.tau_pos: [0.2, 0.5]}]\n"
    trials = load(tmp_path, text, "objective.tau_neg=1", "objective.tau_pos=1")
    assert len(trials) == 1
    assert "tau" not in trials[0].name
    assert trials[0].options.objective.tau_neg == 1


def test_an_overridden_method_leaves_one_trial_of_what_no_longer_varies(tmp_path):
    text = (
        "options: {objective.method: sspo}\ngrid: {objective.gate: [siglog, atanlog], objective.tau_neg: [0.3, 0.5]}\n"
    )
    (trial,) = load(tmp_path, text, "objective.method=gspo")
    assert trial.varied == {}
    assert trial.name.startswith("gspo-clip-seed0-")


def test_the_key_changes_with_every_option_but_the_number_of_threads(tmp_path):
    (first, *_), (second, *_) = load(tmp_path, SWEEP), load(tmp_path, SWEEP, "learning.std=none")
    assert first.key != second.key
    (third, *_) = load(tmp_path, SWEEP, "threads=2")
    assert first.name == third.name


def test_an_option_that_a_later_version_adds_changes_no_key(tmp_path, monkeypatch):
    before = [trial.name for trial in load(tmp_path, SWEEP)]

    class Later(RunOptions):
        another: int = 1

    monkeypatch.setattr("sspo_cli.config.files.RunOptions", Later)
    trials = load(tmp_path, SWEEP)
    assert trials[0].options.another == 1
    assert [trial.name for trial in trials] == before
    assert load(tmp_path, SWEEP, "another=2")[0].name != before[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sedes: [1]\n", r"unknown option `sedes`; did you mean `seeds`\?"),
        ("zip: [{steps: [1, 2], threads: [1]}]\n", "the lists of the zip group steps, threads differ in length"),
        ("grid: {objective.metod: [grpo]}\n", r"did you mean `objective.method`\?"),
        ("base: [nowhere.yaml]\n", "nowhere.yaml cannot be read"),
        ("grid: {steps: 1}\n", r"`grid.steps` = 1 is not valid"),
        ("grid: {steps: []}\n", "the list of steps is empty"),
        ("grid: {seed: [1, 2]}\n", "list the seeds under `seeds`"),
        ("steps: 5\n", r"sweep.yaml holds the options of one run; start it with `sspo train -c .*`"),
        ("blocks: [{objective.method: grpo}]\n", "objective.method is an option of the trials"),
        ("blocks: []\n", "`blocks` = .* is not valid: list should have at least 1 item"),
        ("zip: [{}]\n", "a zip group is empty"),
        ("grid: {steps: [1, 2]}\nzip: [{steps: [1, 2]}]\n", "steps is given twice"),
        ("- seeds\n", "must hold options as `key: value` lines"),
        (
            "seeds: [3]\ngrid: {rollout.prompts: [16, 15], steps: [4, 5]}\n",
            r"sweep.yaml, the trial with rollout.prompts=15, steps=4: rollout.prompts = 15 cannot be split",
        ),
    ],
)
def test_a_wrong_sweep_file_is_reported(tmp_path, text, said):
    with pytest.raises(UserError, match=said):
        load(tmp_path, text)


def command(tmp_path: Path, *arguments: str, text: str = SWEEP) -> list[str]:
    """Return the arguments of `python` that start the sweep."""
    (tmp_path / "small.yaml").write_text(text)
    return ["-m", "sspo_cli", "sweep", "-c", str(tmp_path / "small.yaml"), "--runs-dir", str(tmp_path), *arguments]


def sweep(tmp_path: Path, *arguments: str, text: str = SWEEP) -> subprocess.Popen:
    started = [sys.executable, *command(tmp_path, *arguments, text=text)]
    return subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def states(tmp_path: Path) -> dict[str, str]:
    return {
        path.parent.name: json.loads(path.read_text())["state"] for path in (tmp_path / "small").glob("*/status.json")
    }


def test_dry_run_prints_what_differs_and_starts_nothing(tmp_path):
    said = sspo(*command(tmp_path, "--dry-run")[2:]).stdout
    assert "4 trials" in said
    assert re.search(r"method +seed +key +state", said)
    for trial in load(tmp_path, SWEEP):
        assert re.search(rf"{trial.options.objective.method} +{trial.options.seed} +{trial.key} *$", said, re.MULTILINE)
    assert not (tmp_path / "small").exists()


def test_an_empty_file_is_one_trial_of_the_default_run(tmp_path):
    (trial,) = load(tmp_path, "")
    assert trial.options == RunOptions()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.long)])
def test_a_stopped_sweep_continues_and_skips_what_is_finished(tmp_path, forked_trials, number):
    text = SWEEP.replace("seeds: [0, 1]", "seeds: [0]")
    process = Captured(*command(tmp_path, text=text))
    while "finished" not in states(tmp_path).values():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate()
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    before = states(tmp_path)
    assert number == signal.SIGKILL or "running" not in before.values()  # the trials were stopped too
    done = next(name for name, state in before.items() if state == "finished")
    stamp = os.stat(tmp_path / "small" / done / "metrics.jsonl").st_mtime_ns

    process = Captured(*command(tmp_path, "--jobs", "2", text=text))
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert states(tmp_path) == dict.fromkeys(states(tmp_path), "finished")
    assert len(states(tmp_path)) == 2
    assert os.stat(tmp_path / "small" / done / "metrics.jsonl").st_mtime_ns == stamp


@pytest.mark.slow
def test_a_failing_trial_is_named_and_the_others_run(tmp_path):
    text = SWEEP.replace("seeds: [0, 1]", "seeds: [0]").replace("objective.method: grpo", "model.name: nowhere")
    said, _ = (process := sweep(tmp_path, text=text)).communicate()
    assert process.returncode == 1
    assert "1 of 2 trials failed: sspo-atanlog-name=nowhere-seed0-" in said
    assert "Traceback" not in said
    assert list(states(tmp_path).values()) == ["finished"]  # the refused trial leaves no folder
