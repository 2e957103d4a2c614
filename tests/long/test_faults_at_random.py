"""Small runs with faults at random moments are resumed until they end, with the same bits as an undisturbed run.

`SSPO_LONG_RUNS` is the number of runs of each kind, `SSPO_LONG_SEED` the seed of the faults. Each test prints its faults by
kind.
"""

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from small_runs import arguments, weights, without_times

from sspo_cli.rewards import AnswerChecker

pytestmark = pytest.mark.long

RUNS = int(os.environ.get("SSPO_LONG_RUNS", "6"))
SEED = int(os.environ.get("SSPO_LONG_SEED", "0"))
MOST_STARTS = 30
FILES = ("completions.jsonl", "weights.jsonl", "eval/summary.json", "eval/arithmetic.jsonl")
# Runs the command line with a function of `os` that writes and fails at its `countdown`-th call.
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
    left = [path for pattern in (".*.partial", ".*.replaced", ".*.tmp", "partial/*") for path in run.rglob(pattern)]
    assert left == []


def assert_refused(done: subprocess.CompletedProcess[str]) -> None:
    assert done.stderr.startswith("sspo: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def show(faults: Counter[str]) -> None:
    print("; ".join(f"{count} {kind}" for kind, count in sorted(faults.items())))


@pytest.mark.parametrize("number", range(RUNS))
def test_killed_at_random_moments(undisturbed: Path, tmp_path: Path, number: int) -> None:
    """A run is killed by SIGKILL, sometimes after one or two signals that ask it to stop, as a batch system does."""
    draw = random.Random(f"kill {SEED} {number}")
    shutil.copytree(undisturbed.parent / "cold-starts", tmp_path / "cold-starts")
    run, faults, patience = tmp_path / "a", Counter[str](), 15.0
    for _ in range(MOST_STARTS):
        command = [sys.executable, "-m", "sspo_cli", *arguments(tmp_path, "--run", "a", *resumes(run))]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            try:
                _, said = process.communicate(timeout=draw.uniform(1.0, patience))
                assert process.returncode == 0, said
                break
            except subprocess.TimeoutExpired:
                asked = draw.choice([None, None, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
                if asked is None:
                    faults["SIGKILL"] += 1
                else:
                    for _ in range(draw.choice([1, 2])):
                        process.send_signal(asked)
                        time.sleep(draw.uniform(0.0, 1.0))
                    faults[f"{asked.name}, then SIGKILL"] += 1
                process.kill()
                process.communicate()
                patience *= 1.3  # a slow machine also finishes in the end
    show(faults)
    assert is_finished(run)
    assert_ended_alike(run, undisturbed)


@pytest.mark.parametrize("number", range(RUNS))
def test_file_system_faults_at_random_places(undisturbed: Path, tmp_path: Path, number: int) -> None:
    """A full or broken disk ends a run with one sentence, and the resumed run ends like an undisturbed one."""
    draw = random.Random(f"disk {SEED} {number}")
    shutil.copytree(undisturbed.parent / "cold-starts", tmp_path / "cold-starts")
    run, faults = tmp_path / "a", Counter[str]()
    for start in range(4):
        name = draw.choice(["fsync", "replace", "rename"])
        most = {"fsync": 60, "replace": 20, "rename": 6}[name]
        countdown = 0 if start == 3 else draw.randint(1, most)  # the last start has no fault
        fault = draw.choice([errno.ENOSPC, errno.EIO])
        code = FAILING.format(name=name, countdown=countdown, number=fault)
        command = [sys.executable, "-c", code, *arguments(tmp_path, "--run", "a", *resumes(run))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            break
        faults[f"{errno.errorcode[fault]} of {name}"] += 1
        assert_refused(done)
        if not (run / "config.json").exists():
            shutil.rmtree(run, ignore_errors=True)
    show(faults)
    assert is_finished(run)
    assert_ended_alike(run, undisturbed)


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """Mount a file system of `size` KiB, or skip the test; only root can mount."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="file systems cannot be mounted here")
@pytest.mark.parametrize("number", range(RUNS))
def test_a_disk_that_is_full_at_random_sizes(undisturbed: Path, tmp_path: Path, number: int) -> None:
    """A full disk ends a run with one sentence, whichever library was writing; each resume has more room."""
    draw = random.Random(f"room {SEED} {number}")
    disk = tmp_path / "disk"
    size, faults = draw.randint(100, 2000), Counter[str]()
    with small_disk(disk, size):
        for _ in range(MOST_STARTS):
            command = [sys.executable, "-m", "sspo_cli", *arguments(disk, "--run", "a", *resumes(disk / "a"))]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                break
            faults["full disk"] += 1
            assert_refused(done)
            assert "No space left on device" in done.stderr
            size += draw.randint(100, 1500)
            subprocess.run(["mount", "-o", f"remount,size={size}k", str(disk)], check=True)
        show(faults)
        assert is_finished(disk / "a")
        assert_ended_alike(disk / "a", undisturbed)


def checking_processes() -> dict[str, list[psutil.Process]]:
    """Return the fork server of the answer checker and its workers."""
    children = psutil.Process().children()
    servers = [child for child in children if "forkserver" in " ".join(child.cmdline())]
    return {"fork server": servers, "worker": [worker for server in servers for worker in server.children()]}


@pytest.mark.parametrize("number", range(RUNS))
def test_answer_checks_whose_processes_are_killed(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check whose own worker is killed counts as an error; all others have the right verdict.

    A SIGTERM or SIGHUP, which the whole job or terminal receives, changes no verdict.
    """
    monkeypatch.setattr("sspo_cli.rewards.pool.STALL", 2.0)  # a worker may die while it holds the lock of the others
    draw = random.Random(f"checks {SEED} {number}")
    faults: Counter[str] = Counter()
    with AnswerChecker(workers=2, timeout=1.0) as checker:
        for _ in range(10):
            pairs = []
            for _ in range(draw.randint(1, 12)):
                a, b, right = draw.randint(2, 9999), draw.choice([2, 3, 5, 7]), draw.random() < 0.5
                pairs.append((rf"\sqrt{{{a * a * b}}}", rf"{a if right else a + 1}\sqrt{{{b}}}", right))
            if draw.random() < 0.5:  # kill a process while all are idle
                kill_at_random(draw, faults, "idle")
            pending = [checker.submit(prediction, gold) for prediction, gold, _ in pairs]
            for _ in range(draw.choice([0, 1, 1, 2])):
                time.sleep(draw.uniform(0.0, 0.5))
                kill_at_random(draw, faults, "busy")
            for (_, _, right), verdict in zip(pairs, (each.result(timeout=300.0) for each in pending), strict=True):
                if verdict.status == "error":
                    faults["error"] += 1
                else:
                    assert verdict.status == "ok"
                    assert verdict.equal == right
    show(faults)
    assert faults["error"] <= faults["SIGKILL of a busy worker"]


def kill_at_random(draw: random.Random, faults: Counter[str], when: str) -> None:
    kind = draw.choice(["worker", "worker", "fork server"])
    number = draw.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
    with contextlib.suppress(psutil.NoSuchProcess):
        if processes := checking_processes()[kind]:
            draw.choice(processes).send_signal(number)
            faults[f"{number.name} of a {when} {kind}"] += 1
