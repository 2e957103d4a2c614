"""Run folders of an earlier version of sspo are read, measured and continued, or refused in one sentence."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import xxhash
from commands import assert_error, sspo

from sspo_cli.report.collect import collect
from sspo_cli.tracking.run_folder import RunFolder

# A config as written on 2026-11-23, before validation, several samples, vLLM, eight_bit and the list of resumes.
CONFIG = Path(__file__).parent / "recorded" / "config-of-2026-11-23.json"
SUMMARY = {"step": 0, "benchmark": "arithmetic", "split": "test", "n": 5, "correct": 0, "pass_at_1": 0.0}
SUMMARY |= {"low": 0.0, "high": 0.434, "format": 0.0, "truncated": 5, "timeouts": 0, "temperature": 0.0}
SUMMARY |= {"max_new_tokens": 8, "prompt": "plain", "checkpoint": "step-0"}
ANSWER = {"step": 0, "id": "arithmetic-0", "prompt": "1+1", "completion": "3", "extracted": "3", "gold": "2"}
ANSWER |= {"correct": False, "format": 0.0, "tokens": 8, "truncated": True, "status": "ok"}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Return an old run that was killed before its first checkpoint."""
    run = tmp_path / "old"
    (run / "eval").mkdir(parents=True)
    (run / "checkpoints").mkdir()
    shutil.copy(CONFIG, run / "config.json")
    set_running(run)
    (run / "eval" / "summary.json").write_text(json.dumps([SUMMARY]))
    (run / "eval" / "arithmetic.jsonl").write_text((json.dumps(ANSWER) + "\n") * 5)
    (run / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.0, "tokens": 120}\n')
    return run


def set_running(run: Path) -> None:
    times = {"started": "2026-11-23T21:02:00+00:00", "updated": "2026-11-23T21:02:01+00:00"}
    status = {"state": "running", "step": 1, "steps": 4, "reason": None, "pid": 1, **times}
    (run / "status.json").write_text(json.dumps(status))


def resume(run: Path, last: int):
    """Resume the run as if it had been killed after the checkpoint of step `last`."""
    for step in range(last + 1, 5):
        shutil.rmtree(run / "checkpoints" / f"step-{step}", ignore_errors=True)
    set_running(run)
    return sspo("train", "--runs-dir", run.parent, "--run", run.name, "--resume")


def make_old(checkpoint: Path) -> None:
    """Remove from the state what old checkpoints did not hold."""
    state = torch.load(checkpoint / "trainer.pt", weights_only=True)
    del state["files"], state["run"]["kept"]
    torch.save(state, checkpoint / "trainer.pt")
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["trainer.pt"] = xxhash.xxh3_128((checkpoint / "trainer.pt").read_bytes()).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def test_an_old_run_is_reported_continued_and_measured(old: Path) -> None:
    (run,) = collect([old]).runs
    assert len(run.metrics) == 1
    for last in (0, 2, 3):  # from no checkpoint, an old one, and one of this version
        if last == 2:
            make_old(old / "checkpoints" / "step-2")
        done = resume(old, last)
        assert done.returncode == 0, done.stderr
        assert json.loads((old / "status.json").read_text())["state"] == "finished"
        assert [row["step"] for row in RunFolder(old).metrics()] == [1, 2, 3, 4]
        # Step 0 is measured again, because the old measurement does not record its exact conditions.
        assert [row["step"] for row in RunFolder(old).evaluations()] == [0, 0, 4]
        assert "instead of" not in done.stdout  # the old measurement does not name its problems
    done = sspo("eval", "old", "--runs-dir", old.parent, "--limit", "2")
    assert done.returncode == 0, done.stderr

    make_old(old / "checkpoints" / "step-3")  # one of the two minibatches is done
    assert_error(resume(old, 3), "step-3 cannot be used; delete this folder to use an earlier one: an older version")


def test_an_option_that_there_is_no_more_is_named(old: Path) -> None:
    about = json.loads((old / "config.json").read_text())
    about["options"]["learning"]["inner_steps"] = 2
    (old / "config.json").write_text(json.dumps(about))
    said = f"{old / 'config.json'} does not fit this version of sspo: unknown option `learning.inner_steps`"
    assert_error(resume(old, 0), said)
    assert_error(sspo("eval", "old", "--runs-dir", old.parent), said)
    assert_error(sspo("report", old, "--out", old.parent / "report"), "learning.inner_steps")
    assert not (old.parent / "report").exists()
