"""A sweep that is killed with its trials and started again ends with the same tables as an undisturbed one."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from commands import sspo
from forked import Captured
from test_sweep import command, states

from sspo_cli.tracking.files import last_jsonl_rows

# The cold start is just long enough that some answers are right, so that no two steps or trials have equal results.
TEXT = """
options:
  steps: 16
  model.tiny: {hidden_size: 32, heads: 1, layers: 1}
  rollout: {prompts: 4, group_size: 4, max_new_tokens: 32}
  optimizer.learning_rate: 3e-3
  cold_start: {steps: 250, learning_rate: 1e-2, warmup_steps: 10, checkpoint_every: 100}
  evaluation: {every: 6, validation: 50, benchmarks: [{name: arithmetic, split: test, limit: 50}]}
  checkpoint.every: 4
blocks:
  - options: {objective.method: grpo}
  - options: {objective.method: sspo}
"""


def descendants(pid: int) -> Iterator[int]:
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        yield child
        yield from descendants(child)


def kill_with_all_children(pid: int) -> None:
    """Kill a process and its descendants.

    All are stopped with SIGSTOP first, so that none can save anything or see another one die.
    """
    held = [pid]
    os.kill(pid, signal.SIGSTOP)
    for child in descendants(pid):
        os.kill(child, signal.SIGSTOP)
        held.append(child)
    for each in held:
        os.kill(each, signal.SIGKILL)


def tables(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Return the files that `sspo report` writes on the sweep, by name, when called from the folder above it.

    The table of all runs is compared without the time that each run took.
    """
    monkeypatch.chdir(folder)
    done = sspo("report", "small", "--out", "report", "--select", "best")
    assert done.returncode == 0, done.stderr
    files = [path for path in Path("report").iterdir() if path.suffix in (".csv", ".json", ".md", ".tex")]
    found = {path.name: path.read_bytes() for path in files if path.stem not in ("runs", "report")}
    found["runs.csv"] = pd.read_csv("report/runs.csv").drop(columns="seconds").to_csv().encode()
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "moments",
    [("after the first trial",), pytest.param(("in the cold start", "after the first trial"), marks=pytest.mark.long)],
    ids=" and ".join,
)
def test_a_killed_sweep_ends_with_the_same_tables_byte_for_byte(tmp_path, forked_trials, monkeypatch, moments):
    def steps() -> int:
        rows = [last_jsonl_rows(path, 1) for path in killed.glob("small/*/metrics.jsonl")]
        return sum(row[0]["step"] for row in rows if row)

    has_come = {
        "in the cold start": lambda: any(killed.glob("small/cold-starts/*/step-100")),
        "after the first trial": lambda: "finished" in states(killed).values() and steps() >= 22,  # between checkpoints
    }
    killed, alone = tmp_path / "killed", tmp_path / "alone"
    killed.mkdir()
    alone.mkdir()
    for moment in moments:
        process = Captured(*command(killed, text=TEXT))
        while not has_come[moment]():
            assert process.poll() is None, (moment, process.communicate())
            time.sleep(0.01)
        kill_with_all_children(process.pid)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert "running" in states(killed).values(), moment  # no process could record the end

    for folder in (killed, alone):
        process = Captured(*command(folder, text=TEXT))
        said, _ = process.communicate()
        assert process.returncode == 0, said
        assert states(folder) == dict.fromkeys(states(folder), "finished")
        assert len(states(folder)) == 2
    expected = tables(alone, monkeypatch)
    assert {"table1.md", "table1.csv", "table1.tex", "table1.json", "runs.csv"} <= expected.keys()
    assert tables(killed, monkeypatch) == expected
