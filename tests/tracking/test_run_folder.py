import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sspo_cli.config import RunOptions, load_config
from sspo_cli.errors import UserError
from sspo_cli.tracking.files import append_jsonl, write_json_atomic
from sspo_cli.tracking.run_folder import RunFolder, State


def test_a_new_run_says_what_is_run(tmp_path: Path) -> None:
    options = load_config(overrides=["objective.method=gmpo", "objective.clip_space=log", "seed=3"])
    with RunFolder.create(tmp_path / "runs" / "a", options, ["sspo", "train", "--seed", "3"]) as run:
        assert run.checkpoints.is_dir()
        assert run.eval.is_dir()
        assert run.status["state"] == "running"
    about = json.loads((tmp_path / "runs" / "a" / "config.json").read_text())
    assert about["command"] == ["sspo", "train", "--seed", "3"]
    assert about["packages"]["torch"] == torch.__version__
    assert about["options"]["objective"]["eps_high"] == 0.4  # the method's default is resolved
    assert RunFolder.open(tmp_path / "runs" / "a").config == options


def test_changed_options_are_the_run_s_from_then_on(tmp_path: Path) -> None:
    other = load_config(overrides=["learning.token_budget=99"])
    with RunFolder.create(tmp_path / "a", RunOptions(), []) as run:
        assert run.config == RunOptions()
        run.change(other, "step-3", ["learning.token_budget: 16384 -> 99"])
        assert run.config == other
    assert RunFolder.open(tmp_path / "a").config == other


def test_a_run_is_never_written_over(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "a", RunOptions(), []).close()
    before = (tmp_path / "a" / "config.json").read_text()
    with pytest.raises(UserError, match=r"run .*/a exists; choose another --run or add --resume") as _refusal:
        RunFolder.create(tmp_path / "a", RunOptions(seed=1), [])
    assert (tmp_path / "a" / "config.json").read_text() == before
    RunFolder.resume(tmp_path / "a").close()  # the refusal released the lock, although its traceback is alive
    with pytest.raises(UserError, match="exists"):  # a folder of runs cannot become a run
        RunFolder.create(tmp_path, RunOptions(), [])


@pytest.mark.parametrize(
    ("state", "step", "metrics", "replaced"),
    [
        ("failed", 0, False, True),
        ("failed", 0, True, False),  # killed before its status changed, then not resumed
        ("failed", 3, False, False),
        ("interrupted", 0, False, False),
        ("running", 0, False, False),
    ],
)
def test_only_a_run_that_failed_before_its_first_step_gives_up_its_name(
    tmp_path: Path, state: State, step: int, metrics: bool, replaced: bool
) -> None:
    with RunFolder.create(tmp_path / "a", RunOptions(), []) as run:
        run.write_status(state, step, 120)
        if metrics:
            append_jsonl(run.metrics_path, {"step": 1})
    if replaced:
        RunFolder.create(tmp_path / "a", RunOptions(seed=1), []).close()
    else:
        with pytest.raises(UserError, match="exists"):
            RunFolder.create(tmp_path / "a", RunOptions(seed=1), [])
    assert RunFolder.open(tmp_path / "a").config.seed == replaced


def test_a_run_continues_with_other_options_and_remembers_each_change(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "a", RunOptions(), ["sspo", "train"]) as run:
        for threads, after in ((2, None), (3, "step-9")):
            run.change(RunOptions(threads=threads), after, [f"threads: {threads - 1} -> {threads}"])
            assert run.config.threads == threads
    about = json.loads((tmp_path / "a" / "config.json").read_text())
    assert about["options"]["threads"] == 3
    assert about["command"] == ["sspo", "train"]
    assert about["changes"] == [
        {"after": None, "changed": ["threads: 1 -> 2"]},
        {"after": "step-9", "changed": ["threads: 2 -> 3"]},
    ]


def test_what_is_no_run_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run"):
        RunFolder.open(tmp_path)
    RunFolder.create(tmp_path / "a", RunOptions(), []).close()
    for damaged, said in (('{"options": {', "is not valid JSON"), ("{}", "does not have the format that sspo writes")):
        (tmp_path / "a" / "config.json").write_text(damaged)
        with pytest.raises(UserError, match=said):
            RunFolder.open(tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text('{"options": {"sed": 1}}')
    with pytest.raises(
        UserError, match=r"does not fit this version of sspo: unknown option `sed`; did you mean `seed`"
    ):
        RunFolder.open(tmp_path / "a")


def test_status_keeps_the_first_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunFolder.create(tmp_path / "a", RunOptions(), []) as run:
        started = run.status["started"]
        monkeypatch.setattr("sspo_cli.tracking.run_folder._now", lambda: "later")
        run.write_status("failed", 7, 120, "no space")
        assert run.status["started"] == started
        assert run.status["pid"] == os.getpid()
        assert run.status["updated"] == "later"
        assert {k: run.status[k] for k in ("state", "step", "steps", "reason")} == {
            "state": "failed",
            "step": 7,
            "steps": 120,
            "reason": "no space",
        }


def test_truncating_drops_what_came_after_the_step(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "a", RunOptions(), []) as run:
        for step in range(1, 5):
            append_jsonl(run.metrics_path, {"step": step})
            append_jsonl(run.completions_path, {"step": step})
            bins = {"epoch": 1, "minibatch": 1, "width": 0.05, "positive": [0], "negative": [0]}
            append_jsonl(run.weights_path, {"step": step, **bins})
        write_json_atomic(run.summary_path, [{"step": step, "benchmark": "gsm8k"} for step in (0, 2, 4)])
        run.truncate(2)
        for rows in (run.metrics(), run.completions(), run.weights()):
            assert [row["step"] for row in rows] == [1, 2]
        assert [row["step"] for row in run.evaluations()] == [0, 2]


def measured(run: RunFolder, **pass_at_1: float) -> None:
    """Write checkpoints and scores: `step_4=0.75` is a Pass@1 of 0.75 on validation and of 0.25 on gsm8k at step 4."""
    rows = []
    for name, share in pass_at_1.items():
        step = int(name.removeprefix("step_"))
        (run.checkpoints / f"step-{step}").mkdir(exist_ok=True)
        rows += [
            {"step": step, "benchmark": "validation", "pass_at_1": share, "n": 8},
            {"step": step, "benchmark": "gsm8k", "pass_at_1": 1 - share, "n": 8},
        ]
    write_json_atomic(run.summary_path, rows)


def test_the_best_checkpoint_is_the_earliest_of_those_with_the_highest_validation_score(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "a", RunOptions(), []) as run:
        assert run.choose_best() is None
        assert not run.best_path.exists()
        measured(run, step_0=0.25, step_12=0.75, step_4=0.75, step_8=0.5)
        assert run.choose_best() == 4
        assert json.loads(run.best_path.read_text()) == {"step": 4, "pass_at_1": 0.75, "n": 8}


def test_a_resumed_run_s_best_checkpoint_is_one_that_it_still_has_measured(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "a", RunOptions(), []) as run:
        measured(run, step_0=0.25, step_4=0.5, step_8=0.75)
        run.choose_best()
        run.truncate(7)
        assert json.loads(run.best_path.read_text())["step"] == 4
        (run.checkpoints / "step-4").rmdir()  # deleted when step 8 was found to be better
        run.truncate(7)
        assert json.loads(run.best_path.read_text())["step"] == 0
        (run.checkpoints / "step-0").rmdir()
        run.truncate(7)
        assert not run.best_path.exists()


def test_two_processes_do_not_write_the_same_run(tmp_path: Path) -> None:
    path = tmp_path / "a"
    RunFolder.create(path, RunOptions(), []).close()
    hold = f"""
import sys; from filelock import FileLock
with FileLock({str(path / ".lock")!r}):
    print("held", flush=True); sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UserError, match="is being written by another process"):
            RunFolder.resume(path)
        assert RunFolder.open(path).is_being_written()  # reading needs no lock
        other.communicate()
    assert not RunFolder.open(path).is_being_written()
    RunFolder.resume(path).close()


def test_a_folder_whose_status_cannot_be_written_is_removed_again(tmp_path, monkeypatch):
    def fail(*_):
        raise UserError("no space left")

    monkeypatch.setattr(RunFolder, "write_status", fail)
    with pytest.raises(UserError, match="no space left"):
        RunFolder.create(tmp_path / "runs" / "a", RunOptions(), [])
    assert not (tmp_path / "runs").exists()
