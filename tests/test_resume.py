"""Runs continue after they were killed, stopped or damaged at any point."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from commands import assert_error, sspo
from forked import Captured
from small_runs import AFTER_STEP, IN_CHECKPOINT, IN_COLD_START, arguments, run, run_killed, weights, without_times


@pytest.mark.slow
@pytest.mark.parametrize(
    "deaths",
    [
        pytest.param([(AFTER_STEP, 1)], marks=pytest.mark.long),  # before the first checkpoint
        [(AFTER_STEP, 5), (AFTER_STEP, 4)],  # in the middle of a rollout batch, twice
        # The checkpoints are 50 and 60 of the cold start, then 3 and, half-written, 6.
        [(IN_COLD_START, 30), (IN_CHECKPOINT, 4)],
    ],
    ids=["at once", "twice", "cold start and checkpoint"],
)
def test_killed_anywhere_and_resumed_it_ends_as_if_it_had_not_been(undisturbed: Path, tmp_path: Path, deaths: list):
    for number, (point, countdown) in enumerate(deaths):
        run_killed(tmp_path, point, countdown, *(["--resume"] if number else []))
    run(tmp_path, "--run", "killed", "--resume")
    killed = tmp_path / "killed"
    assert without_times(killed) == without_times(undisturbed)
    assert weights(killed) == weights(undisturbed)
    for name in ("completions.jsonl", "weights.jsonl", "eval/summary.json", "eval/arithmetic.jsonl"):
        assert (killed / name).read_text() == (undisturbed / name).read_text(), name
    assert not list(killed.rglob(".*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_state_and_says_how_to_continue(undisturbed: Path, tmp_path: Path, number: signal.Signals):
    process = Captured("-m", "sspo_cli", *arguments(tmp_path, "--run", "stopped"))
    while not (tmp_path / "stopped" / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    said, _ = process.communicate()
    assert process.returncode == 130
    assert "--resume" in said
    assert "Traceback" not in said
    status = json.loads((tmp_path / "stopped" / "status.json").read_text())
    assert status["state"] == "interrupted"
    assert (tmp_path / "stopped" / "checkpoints" / f"step-{status['step']}").is_dir()
    run(tmp_path, "--run", "stopped", "--resume")
    assert without_times(tmp_path / "stopped") == without_times(undisturbed)
    assert weights(tmp_path / "stopped") == weights(undisturbed)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(undisturbed: Path, tmp_path: Path):
    run_killed(tmp_path, AFTER_STEP, 8)
    damaged = tmp_path / "killed"
    newest = damaged / "checkpoints" / "step-6"
    with (newest / "model.safetensors").open("r+b") as file:  # one flipped byte, the size unchanged
        file.seek(-10, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-10, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    said = run(tmp_path, "--run", "killed", "--resume").stdout
    assert "step-6 is damaged; it is renamed" in said.replace("\n", " ")
    assert without_times(damaged) == without_times(undisturbed)


def test_a_resumed_run_may_be_computed_otherwise(undisturbed: Path, tmp_path: Path):
    """A run may be resumed with other micro-batches, such as after memory was full; its results agree up to rounding."""
    run_killed(tmp_path, AFTER_STEP, 5)
    run(tmp_path, "--run", "killed", "--resume", "-s", "learning.token_budget=150")
    about = json.loads((tmp_path / "killed" / "config.json").read_text())
    assert about["options"]["learning"]["token_budget"] == 150
    (change,) = about["changes"]
    assert change == {"after": "step-3", "changed": ["learning.token_budget: 16384 -> 150"]}
    ours, theirs = without_times(tmp_path / "killed"), without_times(undisturbed)
    assert ours != theirs
    assert [row["reward/mean"] for row in ours] == [row["reward/mean"] for row in theirs]
    assert ours[-1]["policy/grad_norm"] == pytest.approx(theirs[-1]["policy/grad_norm"], rel=1e-3)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--run", "whole"], "whole exists; choose another --run or add --resume"),
        (["--run", "whole", "--resume"], "is finished"),
        (["--run", "whole", "--resume", "-s", "steps=9"], "steps: 10 -> 9"),
        (["--run", "whole", "--resume", "--seed", "1"], "seed: 0 -> 1"),
        (["--run", "whole", "--resume", "-s", "rollout.prompts=16"], "rollout.prompts: 8 -> 16"),
        (["--run", "none", "--resume"], "there is no run none"),
        (["--run", "cold-starts", "--resume"], "there is no run cold-starts"),
        (["--resume"], "--resume needs the run's name"),
    ],
)
def test_a_run_that_cannot_be_started_or_resumed_is_reported(undisturbed: Path, more: list[str], said: str):
    before = {
        path: path.stat().st_mtime_ns for path in undisturbed.parent.rglob("*") if path.suffix in (".json", ".jsonl")
    }
    assert_error(sspo(*arguments(undisturbed.parent, *more)), said)
    assert before == {path: path.stat().st_mtime_ns for path in before}
