"""A sweep whose trials have two ranks: one loses a rank, the sweep is stopped, and the same command continues it."""

import json
import os
import signal
from pathlib import Path

import pytest
from commands import Outcome, assert_error, sspo
from small_runs import SMALL, rows

from sspo_cli.sweep.view import TrialsView
from sspo_cli.tracking.files import last_jsonl_rows


def sweep(folder: Path, *more: object) -> Outcome:
    return sspo("sweep", "-c", folder / "small.yaml", "--runs-dir", folder, "--nproc", 2, *more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    options = {
        **SMALL,
        "device": "cpu",
        "cold_start.steps": 20,
        "evaluation.benchmarks": "[]",
        "evaluation.every": "null",
    }
    lines = [f"  {key}: {value}" for key, value in options.items()]
    (tmp_path / "small.yaml").write_text("\n".join(["options:", *lines, "seeds: [3]"]) + "\n")
    return tmp_path


def test_a_trial_of_two_ranks_is_retried_stopped_and_continued(forked_trials, folder, monkeypatch):
    refresh, killed = TrialsView.refresh, []

    def disturb(view: TrialsView) -> None:
        """Kill the first rank once it has a checkpoint, and stop the sweep once the retried trial is past it."""
        refresh(view)
        for trial in folder.glob("small/*/metrics.jsonl"):
            step = max((row["step"] for row in last_jsonl_rows(trial, 1)), default=0)
            first = json.loads((trial.parent / "status.json").read_text())["pid"]
            if step >= 4 and not killed:
                killed.append(first)
                os.kill(first, signal.SIGKILL)
            elif step >= 7 and first not in killed:
                signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("sspo_cli.sweep.schedule.POLL_SECONDS", 0.05)
    with monkeypatch.context() as disturbed:
        disturbed.setattr(TrialsView, "refresh", disturb)
        done = sweep(folder)
    assert done.returncode == 130, done.stdout + done.stderr
    assert "trials of 2 ranks, 1 at a time: slot 1" in done.stdout
    assert "to be retried sspo" in done.stdout
    assert "the same command continues them: `sspo sweep" in done.stderr
    assert killed
    (run,) = (path.parent for path in folder.glob("small/*/status.json"))
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "interrupted"
    assert (run / "checkpoints" / f"step-{status['step']}").is_dir()
    log = run.with_name(f"{run.name}.log").read_text()
    assert "rank 0: it was ended by SIGKILL" in log
    assert "Traceback" not in log

    done = sweep(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    assert [row["step"] for row in rows(run / "metrics.jsonl")] == list(range(1, SMALL["steps"] + 1))
    about = json.loads((run / "config.json").read_text())
    assert [about["ranks"], *(start["ranks"] for start in about["resumed"])] == [2, 2, 2]
    assert about["resumed"][0]["after"] == "step-3"


def test_a_dry_run_says_where_trials_of_ranks_run(folder, monkeypatch):
    done = sweep(folder, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "1 trial of 2 ranks, 1 at a time: slot 1, to be run in" in " ".join(done.stdout.split())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    done = sweep(folder, "--dry-run", "-s", "device=auto")
    assert "2 ranks, 1 at a time: GPUs 4,5; idle: GPU 6" in " ".join(done.stdout.split())


def test_what_ranks_of_a_trial_cannot_do_is_refused_before_one_starts(folder):
    assert_error(sweep(folder, "-s", "rollout.engine=vllm"), "this run has 2 ranks; start a vLLM server")
    assert_error(sweep(folder, "-s", "model.kernels=compiled"), "compiled does not support several ranks")
    assert_error(sweep(folder, "--nproc", 99), "99 ranks are too many for the")
    assert not (folder / "small").exists()
