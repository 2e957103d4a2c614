"""The scheduler of a sweep and the processes of its trials, which do no long work here."""

import multiprocessing
import os
import signal
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from sspo_cli.config import RunOptions
from sspo_cli.errors import UserError
from sspo_cli.interruption import Interrupted
from sspo_cli.sweep import run_sweep
from sspo_cli.sweep.grid import Trial
from sspo_cli.sweep.machine import Machine
from sspo_cli.sweep.place import command_of, spawn
from sspo_cli.sweep.view import TrialsView
from sspo_cli.tracking.run_folder import RunFolder


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("sspo_cli.sweep.schedule.POLL_SECONDS", 0.01)


def trials(*names: str) -> list[Trial]:
    return [Trial(name, {}, RunOptions(threads=8)) for name in names]


class Scripted:
    """Place for `room` trials, whose attempts end with the given exit codes one tick after their start."""

    def __init__(self, room: int, codes: dict[str, list[int]]) -> None:
        self.room, self.codes, self.order, self.most, self.now = room, codes, [], 0, 0

    def start(self, trial: Trial, folder: Path):
        if self.now == self.room:
            return None
        self.now += 1
        self.most = max(self.most, self.now)
        self.order.append(trial.name)
        return ScriptedTrial(self, self.codes[trial.name].pop(0))


class ScriptedTrial:
    slot = "somewhere"

    def __init__(self, place: Scripted, code: int) -> None:
        self.place, self.code, self.polls = place, code, 0

    def poll(self) -> int | None:
        self.polls += 1
        if self.polls < 2:
            return None
        self.place.now -= 1
        return self.code

    def stop(self) -> None: ...

    def wait(self) -> None: ...


class Endless(Scripted):
    """Place whose trials run until they are stopped; `b` then finishes. `log` lists the calls to its trials."""

    def __init__(self, room: int) -> None:
        super().__init__(room, defaultdict(lambda: [0]))
        self.log: list[str] = []

    def start(self, trial: Trial, folder: Path):
        if super().start(trial, folder) is None:
            return None
        return EndlessTrial(trial.name, folder, self.log)


class EndlessTrial:
    slot = "somewhere"

    def __init__(self, name: str, folder: Path, log: list[str]) -> None:
        self.name, self.folder, self.log = name, folder, log

    def poll(self) -> int | None:
        return None

    def stop(self) -> None:
        self.log.append(f"stop {self.name}")

    def wait(self) -> None:
        self.log.append(f"wait {self.name}")
        with RunFolder.create(self.folder / self.name, RunOptions(threads=8), []) as run:
            run.write_status("finished" if self.name == "b" else "interrupted", 160, 160)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_trials_at_once_and_waits_for_each(tmp_path, capsys, monkeypatch, number):
    refresh = TrialsView.refresh
    monkeypatch.setattr(TrialsView, "refresh", lambda self: (refresh(self), signal.raise_signal(number)))
    place = Endless(2)
    with pytest.raises(Interrupted, match="the same command continues them"):
        run_sweep(trials("a", "b", "c"), tmp_path, place, retries=1)
    assert place.log == ["stop a", "stop b", "wait a", "wait b"]
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[-2:]] == [
        ["stopped", "a"],
        ["finished", "b"],
    ]


def test_a_trial_that_cannot_be_started_leaves_no_other_one_running(tmp_path):
    class Broken(Endless):
        def start(self, trial, folder):
            if trial.name == "b":
                raise UserError("no more processes")
            return super().start(trial, folder)

    place = Broken(2)
    with pytest.raises(UserError, match="no more processes"):
        run_sweep(trials("a", "b"), tmp_path, place, retries=0)
    assert place.log == ["stop a", "wait a"]


@pytest.mark.parametrize("outcome", ["finished", "interrupted"])
def test_a_trial_that_a_killed_sweep_left_running_is_waited_for(tmp_path, capsys, outcome):
    """The trial is started after its old process has ended, unless that process finished it."""
    orphan = RunFolder.create(tmp_path / "a", RunOptions(threads=8), [])

    class Place(Scripted):
        def start(self, trial, folder):
            started = super().start(trial, folder)
            if started is not None and trial.name == "c":  # by now the sweep has passed `a` over more than once
                orphan.write_status(outcome, 160, 160)
                orphan.close()
            return started

    place = Place(1, {"a": [0], "b": [0], "c": [0]})
    run_sweep(trials("a", "b", "c"), tmp_path, place, retries=0)
    assert place.order == {"finished": ["b", "c"], "interrupted": ["b", "c", "a"]}[outcome]
    said = capsys.readouterr().out
    assert said.count("still running a (") == 1
    assert said.count("finished      a (") == 1


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere a trial outlives its sweep, and the next sweep waits for it"
)
def test_a_trial_gets_a_sigterm_when_its_sweep_is_killed(tmp_path):
    script = (
        "import pathlib, signal, sys, time; folder = pathlib.Path(sys.argv[1])\n"
        "signal.signal(signal.SIGTERM, lambda *_: (folder / 'saved').touch() or sys.exit())\n"
        "(folder / 'started').touch(); time.sleep(60)"
    )

    def sweep() -> None:
        spawn([sys.executable, "-c", script, str(tmp_path)], {}, tmp_path / "log")
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    killed = multiprocessing.get_context("fork").Process(target=sweep)
    killed.start()
    killed.join(timeout=30)
    killed.kill()  # in case the trial never began
    assert killed.exitcode == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while not (tmp_path / "saved").exists():
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.01)


def test_a_failed_trial_is_tried_again_after_the_others(tmp_path, capsys):
    place = Scripted(2, {"a": [1, 0], "b": [0], "c": [0]})
    run_sweep(trials("a", "b", "c"), tmp_path, place, retries=1)
    assert place.order == ["a", "b", "c", "a"]
    assert place.most == 2
    assert capsys.readouterr().out.splitlines()[-1] == "finished      a (3 of 3 finished)"


def test_a_trial_that_crashed_after_its_last_step_is_finished(tmp_path, capsys):
    class Crashing(Scripted):
        def start(self, trial, folder):
            with RunFolder.create(folder / trial.name, RunOptions(threads=8), []) as run:
                run.write_status("finished", 160, 160)
            return super().start(trial, folder)

    place = Crashing(1, {"a": [-11]})
    run_sweep(trials("a"), tmp_path, place, retries=0)
    assert place.order == ["a"]
    assert capsys.readouterr().out.splitlines()[-1] == "finished      a (1 of 1 finished)"


def test_a_trial_that_keeps_failing_is_named_after_its_last_try(tmp_path):
    place = Scripted(1, {"a": [1, -9, 1], "b": [0]})
    with pytest.raises(UserError, match=r"^1 of 2 trials failed: a; their output is in .*<trial>.log, and the same"):
        run_sweep(trials("a", "b"), tmp_path, place, retries=2)
    assert place.order == ["a", "b", "a", "a"]


def test_without_retries_a_trial_fails_once(tmp_path):
    place = Scripted(1, {"a": [1, 0]})
    with pytest.raises(UserError, match="1 of 1 trial failed"):
        run_sweep(trials("a"), tmp_path, place, retries=0)


def test_a_second_sweep_over_the_folder_is_reported(tmp_path):
    class Sweeping(Scripted):
        def start(self, trial, folder):
            with pytest.raises(UserError, match="is being run by another process"):
                run_sweep(trials("a"), tmp_path, self, retries=0)
            return super().start(trial, folder)

    place = Sweeping(1, {"a": [0]})
    run_sweep(trials("a"), tmp_path, place, retries=0)
    assert place.order == ["a"]


def test_a_trial_that_was_begun_with_other_options_is_reported(tmp_path):
    with RunFolder.create(tmp_path / "a", RunOptions(threads=2, steps=5), []):
        pass
    place = Scripted(1, {"a": [0]})
    with pytest.raises(
        UserError, match=r"a was started with other options \(steps: 5 -> 160\); give the sweep another --name"
    ):
        run_sweep(trials("a"), tmp_path, place, retries=0)
    assert place.order == []


def test_a_finished_trial_is_neither_started_nor_reported_again(tmp_path, capsys):
    with RunFolder.create(tmp_path / "a", RunOptions(threads=8), []) as run:
        run.write_status("finished", 160, 160)
    place = Scripted(1, {"b": [0]})
    run_sweep(trials("a", "b"), tmp_path, place, retries=0)
    assert place.order == ["b"]
    said = capsys.readouterr().out
    assert "2 trials in" in said.splitlines()[0]
    assert "1 finished before" in said.splitlines()[0]
    assert "finished      a" not in said


def test_a_trial_that_waits_for_room_is_not_overtaken_by_smaller_ones(tmp_path):
    class Sized(Scripted):
        def start(self, trial, folder):
            return None if trial.name == "big" and self.now else super().start(trial, folder)

    place = Sized(2, {"a": [0], "big": [0], "c": [0]})
    run_sweep(trials("a", "big", "c"), tmp_path, place, retries=0)
    assert place.order == ["a", "big", "c"]


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*/file/sweep: Not a directory"):
        run_sweep(trials("a"), tmp_path / "file" / "sweep", Scripted(1, {"a": [0]}), retries=0)


def test_a_trial_is_begun_with_its_options_and_then_resumed(tmp_path):
    (trial,) = trials("a")
    begun = command_of(trial, tmp_path, 1)
    assert begun[:5] == [sys.executable, "-m", "sspo_cli", "train", "--runs-dir"]
    assert begun[5:] == [str(tmp_path), "--run", "a", "-c", str(tmp_path / "a.json")]
    assert RunOptions.model_validate_json((tmp_path / "a.json").read_text()) == trial.options
    RunFolder.create(tmp_path / "a", trial.options, []).close()
    assert command_of(trial, tmp_path, 1)[5:] == [str(tmp_path), "--run", "a", "--resume"]
    assert command_of(trial, tmp_path, 8)[5:] == [str(tmp_path), "--run", "a", "--nproc", "8", "--resume"]
    fewer = replace(trial, options=trial.options.model_copy(update={"threads": 3}))
    assert command_of(fewer, tmp_path, 8)[8:] == ["--nproc", "8", "--resume", "-s", "threads=3"]
    (tmp_path / "a" / "status.json").unlink()  # as if killed while the folder was created
    for folder in ("checkpoints", "eval"):
        (tmp_path / "a" / folder).rmdir()
    assert command_of(trial, tmp_path, 1) == begun


def test_a_trial_reads_nothing_is_apart_from_the_terminal_and_its_log_keeps_every_attempt(tmp_path):
    script = (
        "import os, sys; print(os.read(0, 9) == b'', os.getsid(0) == os.getpid(), sys.argv[1], flush=True)\n"
        "sys.exit(sys.argv[1])"  # prints to standard error
    )
    (tmp_path / "typed").write_text("typed")
    terminal = os.dup(0)
    try:
        with (tmp_path / "typed").open() as typed:
            os.dup2(typed.fileno(), 0)
        for attempt in ("one", "two"):
            spawn([sys.executable, "-c", script, attempt], {}, tmp_path / "log").wait()
    finally:
        os.dup2(terminal, 0)
        os.close(terminal)
    assert (tmp_path / "log").read_text().split() == ["True", "True", "one", "one", "True", "True", "two", "two"]


def test_a_trial_that_is_asked_to_stop_can_save_its_state(tmp_path, monkeypatch):
    script = (
        "import pathlib, signal, sys, time; folder = pathlib.Path(sys.argv[1])\n"
        "signal.signal(signal.SIGTERM, lambda *_: (folder / 'saved').touch() or sys.exit(130))\n"
        "(folder / 'started').touch(); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    monkeypatch.setattr("sspo_cli.sweep.machine.command_of", lambda *_: command)
    running = Machine(1, []).start(trials("a")[0], tmp_path)
    while not (tmp_path / "started").exists():
        assert running.poll() is None
        time.sleep(0.01)
    running.stop()
    running.wait()
    assert running.poll() == 130
    assert (tmp_path / "saved").exists()
