"""Small runs with faults at random moments, each resumed until it ends: to the bit as if nothing had happened.

`SSPO_LONG_RUNS` says how many runs of each kind there are, `SSPO_LONG_SEED` which.
"""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import arguments, weights, without_times

pytestmark = pytest.mark.long

RUNS = int(os.environ.get("SSPO_LONG_RUNS", "6"))
SEED = int(os.environ.get("SSPO_LONG_SEED", "0"))
MOST_STARTS = 30
FILES = ("completions.jsonl", "weights.jsonl", "eval/summary.json", "eval/arithmetic.jsonl")
# Starts the command line with a fault waiting at a call of the system that writes.
FAILING = """
import os, sys
from pathlib import Path
name, countdown, number = {name!r}, {countdown}, {number}
original = getattr(os, name)
def failing(*args, **kwargs):
    global countdown
    countdown -= 1
    if countdown == 0:
        raise OSError(number, os.strerror(number))
    return original(*args, **kwargs)
setattr(os, name, failing)
from sspo_cli.cli import main
main()
"""


def resumes(run: Path) -> list[str]:
    return ["--resume"] if (run / "config.json").exists() else []


def is_finished(run: Path) -> bool:
    return '"finished"' in (run / "status.json").read_text()


def assert_ended_alike(run: Path, undisturbed: Path) -> None:
    assert without_times(run) == without_times(undisturbed)
    assert weights(run) == weights(undisturbed)
    for name in FILES:
        assert (run / name).read_text() == (undisturbed / name).read_text(), name
    assert not list(run.rglob(".*.partial"))
    assert not list(run.rglob(".*.replaced"))


@pytest.mark.parametrize("number", range(RUNS))
def test_killed_at_random_moments(undisturbed: Path, tmp_path: Path, number: int) -> None:
    """By SIGKILL, or asked to stop and then killed, as a batch system does."""
    draw = random.Random(f"kill {SEED} {number}")
    shutil.copytree(undisturbed.parent / "cold-starts", tmp_path / "cold-starts")
    run, deaths, patience = tmp_path / "a", 0, 15.0
    for _ in range(MOST_STARTS):
        command = [sys.executable, "-m", "sspo_cli", *arguments(tmp_path, "--run", "a", *resumes(run))]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            try:
                _, said = process.communicate(timeout=draw.uniform(1.0, patience))
                assert process.returncode == 0, said
                break
            except subprocess.TimeoutExpired:
                if draw.random() < 0.5:
                    process.send_signal(draw.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP]))
                    time.sleep(draw.uniform(0.0, 1.0))
                process.kill()
                process.communicate()
                deaths += 1
                patience *= 1.3  # so that a slow machine comes to an end too
    print(f"killed {deaths} times")
    assert is_finished(run)
    assert_ended_alike(run, undisturbed)


@pytest.mark.parametrize("number", range(RUNS))
def test_file_system_faults_at_random_places(undisturbed: Path, tmp_path: Path, number: int) -> None:
    """A full or broken disk ends a run in one sentence, and the resumed run ends as if it had not."""
    draw = random.Random(f"disk {SEED} {number}")
    shutil.copytree(undisturbed.parent / "cold-starts", tmp_path / "cold-starts")
    run, faults = tmp_path / "a", 0
    for start in range(4):
        name = draw.choice(["fsync", "replace", "rename"])
        most = {"fsync": 60, "replace": 20, "rename": 6}[name]
        countdown = 0 if start == 3 else draw.randint(1, most)  # the last one has none
        code = FAILING.format(name=name, countdown=countdown, number=draw.choice([errno.ENOSPC, errno.EIO]))
        command = [sys.executable, "-c", code, *arguments(tmp_path, "--run", "a", *resumes(run))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        if done.returncode == 0:
            break
        faults += 1
        assert done.stderr.startswith("sspo: "), done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        if not (run / "config.json").exists():
            shutil.rmtree(run, ignore_errors=True)
    print(f"{faults} faults")
    assert is_finished(run)
    assert_ended_alike(run, undisturbed)
