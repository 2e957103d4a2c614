"""A run on several ranks is that of one process; killed and continued by as many ranks, it is the same to the last bit."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from commands import assert_error, sspo
from safetensors.torch import load_file
from small_runs import arguments, rows, run, without_times

from sspo_cli.errors import UserError
from sspo_cli.supervisor import run_ranks

STEPS = 10
FINITE = 1e-5
MEASURED = ("sync", "sampling", "grading", "learning", "waiting", "tokens_per_second")
# Starts a rank that is killed before or after a call of one of the program's functions.
KILLED = """
import os, signal, sys
if os.environ["RANK"] == {rank!r}:
    import {module} as module
    original, left = module.{name}, [{countdown}]
    def fatal(*args, **kwargs):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)
    module.{name} = fatal
from sspo_cli.cli import main
main()
"""
# The same for a rank whose machine has other files.
ALONE = """
import os, sys
import sspo_cli.examination as module
from sspo_cli.errors import UserError
original = module.load_problems
def load(*args, **kwargs):
    problems = original(*args, **kwargs)
    if {missing}:
        raise UserError("the data are not on this machine")
    return problems[1:]
if os.environ["RANK"] == "1":
    module.load_problems = load
from sspo_cli.cli import main
main()
"""
IN_CHECKPOINT = {"rank": "1", "module": "sspo_cli.policy.checkpoint", "name": "save_optimizer", "countdown": 2}
IN_STEP = {"rank": "0", "module": "sspo_cli.train", "name": "guarded_step", "countdown": 2}
CALCULATOR = {
    "steps": 4,
    "tasks": "[{name: calculator, limit: 60}]",
    "episode": "{turns: 3, max_tokens: 120}",
    "rollout.max_new_tokens": 24,
    "evaluation.benchmarks": "[{name: calculator, split: test, limit: 9}]",
    "cold_start.steps": 20,
}


@pytest.fixture(scope="module")
def runs(forked_ranks, undisturbed, tmp_path_factory):
    """A folder of runs of the small task: `alone`, of one process, `two`, of two ranks, and a killed one as it went on."""
    runs = tmp_path_factory.mktemp("runs")
    shutil.copytree(undisturbed, runs / "alone")
    run(runs, "--run", "two", "--nproc", "2")
    for number, point in enumerate((IN_CHECKPOINT, IN_STEP)):
        more = ["--resume"] if number else []
        command = [sys.executable, "-c", KILLED.format(**point), *arguments(runs, "--run", "killed", *more)]
        with pytest.raises(UserError, match=f"rank {point['rank']}: it was ended by SIGKILL"):
            run_ranks(command, 2)
        shutil.copytree(runs / "killed", runs / f"killed-{number}")
    run(runs, "--run", "killed", "--resume", "--nproc", "2")
    return runs


def assert_agree(ours: Path, theirs: Path) -> None:
    """The same completions and answers, and numbers that differ by rounding alone."""
    assert len(without_times(ours)) == len(without_times(theirs))
    for mine, other in zip(without_times(ours), without_times(theirs), strict=True):
        assert mine == pytest.approx(other, abs=FINITE)
    texts = [[row["completion"] for row in rows(run_folder / "completions.jsonl")] for run_folder in (ours, theirs)]
    assert texts[0] == texts[1]
    for path in (ours / "eval").glob("*.jsonl"):
        assert rows(path) == rows(theirs / "eval" / path.name)


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{STEPS}" / "model.safetensors")


def test_two_ranks_do_what_one_process_does(runs):
    """Each has a separate cold start: that of two ranks is not used by one process."""
    assert len(list((runs / "cold-starts").iterdir())) == 1
    assert_agree(runs / "two", runs / "alone")
    assert json.loads((runs / "two" / "config.json").read_text())["ranks"] == 2
    assert json.loads((runs / "two" / "status.json").read_text())["state"] == "finished"


def test_each_rank_is_measured_and_nothing_is_that_a_cpu_cannot_say(runs):
    of_ranks = {f"time/rank_{rank}_{what}" for rank in (0, 1) for what in MEASURED}
    for row in rows(runs / "two" / "metrics.jsonl"):
        assert {name for name in row if "rank_" in name or name.startswith("device/")} == of_ranks
        assert all(row[name] >= 0 for name in of_ranks)
        assert row["time/rank_0_learning"] == row["time/learning"]
        assert 0 < row["time/rank_1_waiting"] < row["time/elapsed"]
        assert row["time/rank_1_tokens_per_second"] > 0
    for phase in ("sync", "sampling"):  # the torch engine gathers the weights
        sampled = [row[f"time/rank_1_{phase}"] > 0 for row in rows(runs / "two" / "metrics.jsonl")]
        assert sampled == [step % 4 == 0 for step in range(STEPS)]
    alone = rows(runs / "alone" / "metrics.jsonl")
    assert not any("time/sync" in row for row in alone)
    assert not any("rank_" in name or name.startswith("device/") for row in alone for name in row)


def test_a_killed_run_continues_to_the_same_bits(runs):
    about = json.loads((runs / "killed" / "config.json").read_text())
    assert [start["after"] for start in about["resumed"]] == ["step-3", "step-3"]
    assert without_times(runs / "killed") == without_times(runs / "two")
    ours, theirs = final_weights(runs / "killed"), final_weights(runs / "two")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    for name in ("completions.jsonl", "weights.jsonl", "eval/arithmetic.jsonl", "eval/summary.json"):
        assert (runs / "killed" / name).read_text() == (runs / "two" / name).read_text()


@pytest.mark.parametrize(("number", "rank"), [(0, 1), (1, 0)])
def test_the_status_says_which_rank_was_killed_even_if_it_was_the_one_that_writes_it(runs, number, rank):
    status = json.loads((runs / f"killed-{number}" / "status.json").read_text())
    assert status["state"] == "failed"
    assert status["reason"].startswith(f"rank {rank}: it was ended by SIGKILL")


def test_ranks_of_an_evaluation_compute_where_its_run_did(runs, monkeypatch):
    started = []
    monkeypatch.setattr("sspo_cli.supervisor.run_ranks", lambda command, count, ends: started.append((count, ends)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert_error(sspo("eval", "alone", "--nproc", 2, "--runs-dir", runs), "2 ranks need as many GPUs")
    shutil.copytree(runs / "alone", runs / "on-cpu")
    config = runs / "on-cpu" / "config.json"
    about = json.loads(config.read_text())
    config.write_text(json.dumps({**about, "options": {**about["options"], "device": "cpu"}}))
    assert sspo("eval", "on-cpu", "--nproc", 2, "--runs-dir", runs).returncode == 0
    ((count, ends),) = started
    assert count == 2
    assert "finished work is saved; `sspo eval on-cpu --nproc 2" in ends.stopped


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_ranks_continues_to_rounding(runs, count):
    name = f"on-{count}"
    shutil.copytree(runs / "killed-1", runs / name)
    done = sspo("train", "--runs-dir", runs, "--run", name, "--resume", *(["--nproc", count] if count > 1 else []))
    assert done.returncode == 0, done.stderr
    assert_agree(runs / name, runs / "two")
    about = json.loads((runs / name / "config.json").read_text())
    assert [start["ranks"] for start in about["resumed"]] == [2, count]


def test_episodes_are_those_of_one_process(forked_ranks, tmp_path):
    sets = [part for key, value in CALCULATOR.items() for part in ("-s", f"{key}={value}")]
    run(tmp_path, "--run", "two", "--nproc", "2", *sets)
    run(tmp_path, "--run", "alone", *sets)
    assert_agree(tmp_path / "two", tmp_path / "alone")


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (True, "^rank 1: the data are not on this machine$"),
        (
            False,
            "^rank 1 has other data or another tokenizer than rank 0 .*; give all machines the same model and data$",
        ),
    ],
)
def test_a_rank_that_reads_other_files_refuses_the_run_before_it_has_a_folder(forked_ranks, tmp_path, missing, said):
    command = [sys.executable, "-c", ALONE.format(missing=missing), *arguments(tmp_path, "--run", "refused")]
    with pytest.raises(UserError, match=said):
        run_ranks(command, 2)
    assert not (tmp_path / "refused").exists()


def test_what_ranks_cannot_do_is_refused(forked_ranks, tmp_path):
    refused = "rollout.engine = vllm samples in one process, but this run has 2 ranks"
    done = sspo(*arguments(tmp_path, "--nproc", "2"), rollout__engine="vllm")
    assert_error(done, refused)
