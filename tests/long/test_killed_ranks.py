"""A run of two ranks, of which one is killed 20 times at random moments, has the same bits as an undisturbed run.

`SSPO_LONG_KILLS` is the number of kills, `SSPO_LONG_SEED` the seed of their moments.
"""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file
from small_runs import arguments, rows, without_times

pytestmark = pytest.mark.long

KILLS = int(os.environ.get("SSPO_LONG_KILLS", "20"))
SEED = int(os.environ.get("SSPO_LONG_SEED", "0"))
STEPS = 40
PART = 3  # a rank is killed within the first third of the time of a whole run
SECONDS_TO_END = 60


def start(folder: Path, name: str) -> subprocess.Popen[str]:
    """Start the run, or resume it if it has begun."""
    begun = (folder / name / "config.json").exists()
    more = ["--resume"] if begun else ["-s", f"steps={STEPS}"]
    command = arguments(folder)[:3] if begun else arguments(folder)
    return subprocess.Popen(
        [sys.executable, "-m", "sspo_cli", *command, "--run", name, "--nproc", "2", *more],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the ranks that the process has started; each has child processes that check answers."""
    return psutil.Process(process.pid).children()


def test_a_run_that_loses_a_rank_at_random_moments_is_the_same_to_the_last_bit(tmp_path):
    began = time.monotonic()
    alone = start(tmp_path, "alone")
    assert alone.wait() == 0, alone.communicate()[1]
    longest, draw = (time.monotonic() - began) / PART, random.Random(SEED)
    kills, runs = 0, [0]
    while True:
        name = f"killed-{runs[-1]}"
        process = start(tmp_path, name)
        if kills < KILLS:
            time.sleep(draw.uniform(0, longest))
            ranks = ranks_of(process) if process.poll() is None else []
            if ranks:
                killed = draw.randrange(len(ranks))
                ranks[killed].kill()
                said = process.communicate(timeout=SECONDS_TO_END)[1]
                if process.returncode:  # otherwise the run had already ended when the rank was killed
                    kills += 1
                    last = said.splitlines()[-1]
                    assert process.returncode == 1, said
                    assert last.startswith("sspo: "), said
                    assert "SIGKILL" in last, said
                    # The latter if the rank had not joined the others yet.
                    assert "--resume" in last or last.endswith("; start the command again"), said
                    assert "Traceback" not in said
                    assert psutil.wait_procs(ranks, timeout=10)[1] == []
                    continue
        said = process.communicate()[1]
        assert process.returncode == 0, said
        if kills == KILLS:
            break
        runs.append(runs[-1] + 1)  # the run ended between two kills
    for number in runs:
        ours, theirs = tmp_path / f"killed-{number}", tmp_path / "alone"
        assert without_times(ours) == without_times(theirs)
        assert rows(ours / "completions.jsonl") == rows(theirs / "completions.jsonl")
        last = Path("checkpoints") / f"step-{STEPS}" / "model.safetensors"
        weights = load_file(theirs / last)
        assert all(tensor.equal(weights[name]) for name, tensor in load_file(ours / last).items())
