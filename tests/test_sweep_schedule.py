"""The scheduler of a sweep and the places where trials run, without a trial's long work."""

import json
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
from sspo_cli.sweep import place_for, run_sweep
from sspo_cli.sweep.grid import Trial
from sspo_cli.sweep.machine import Machine, visible_gpus
from sspo_cli.sweep.place import command_of, spawn
from sspo_cli.sweep.view import TrialsView
from sspo_cli.tracking.run_folder import RunFolder


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("sspo_cli.sweep.schedule.POLL_SECONDS", 0.01)


def trials(*names: str) -> list[Trial]:
    return [Trial(name, {}, RunOptions(threads=8)) for name in names]


class Scripted:
    """A place with so much room, where the attempts of a trial end with the given exit codes, one tick after their start."""

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
    """The same, but trials continue until they are stopped, when `b` takes its last step; `log` lists what is done to them."""

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
    """Its turn comes when its process has ended; where that has finished it, there is nothing left to start."""
    orphan = RunFolder.create(tmp_path / "a", RunOptions(threads=8), [])

    class Place(Scripted):
        def start(self, trial, folder):
            started = super().start(trial, folder)
            if started is not None and trial.name == "c":  # by now `a` was passed over more than once
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
    killed.kill()  # where the trial has never begun
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


def started_with(tmp_path: Path, monkeypatch, machine: Machine, names: list[str]) -> list[dict[str, str]]:
    """The environment that trials of those names get, all of them started at once; they end when the file `end` appears."""
    script = (
        "import os, sys, json, time, pathlib; folder = pathlib.Path(sys.argv[1]); "
        "(folder / sys.argv[2]).write_text(json.dumps(dict(os.environ)))\n"
        "while not (folder / 'end').exists(): time.sleep(0.02)"
    )
    threads = []

    def command(trial: Trial, folder: Path, ranks: int) -> list[str]:
        threads.append(str(trial.options.threads))
        return ["python3", "-c", script, str(folder), trial.name]

    monkeypatch.setattr("sspo_cli.sweep.machine.command_of", command)
    running = [started for trial in trials(*names) if (started := machine.start(trial, tmp_path))]
    (tmp_path / "end").touch()
    for process in running:
        process.wait()
        assert process.poll() == 0
    (tmp_path / "end").unlink()
    environments = [json.loads((tmp_path / name).read_text()) for name in names if (tmp_path / name).exists()]
    assert [environment["OMP_NUM_THREADS"] for environment in environments] == threads
    return environments


def test_each_gpu_gets_its_share_of_trials_and_of_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    machine = Machine(2, ["0", "GPU-5f"])
    environments = started_with(tmp_path, monkeypatch, machine, ["a", "b", "c", "d", "e"])
    on = defaultdict(int)
    for environment in environments:
        on[environment["CUDA_VISIBLE_DEVICES"]] += 1
        assert environment["OMP_NUM_THREADS"] == "3"
    assert on == {"0": 2, "GPU-5f": 2}  # the fifth found no room
    assert len(started_with(tmp_path, monkeypatch, machine, ["f"])) == 1  # the slots are free again


def test_trials_of_several_ranks_get_whole_gpus_and_a_core_for_each_rank(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    machine = Machine(1, ["0", "1", "GPU-5f", "3", "4"], 2)
    assert machine.layout == "2 at a time: GPUs 0,1, GPUs GPU-5f,3; idle: GPU 4"
    environments = started_with(tmp_path, monkeypatch, machine, ["a", "b", "c"])
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in environments] == ["0,1", "GPU-5f,3"]
    assert [environment["OMP_NUM_THREADS"] for environment in environments] == ["3", "3"]
    with pytest.raises(UserError, match="a trial of 8 ranks needs as many GPUs, but this machine has 5"):
        Machine(1, ["0", "1", "2", "3", "4"], 8)
    with pytest.raises(
        UserError, match="--jobs 2 shares each GPU among trials, but a trial of several ranks needs whole GPUs"
    ):
        Machine(2, ["0", "1"], 2)


def test_without_a_gpu_trials_share_the_cores_and_see_no_change_of_devices(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(2)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    environments = started_with(tmp_path, monkeypatch, Machine(3, visible_gpus()), ["a", "b", "c"])
    assert [e["OMP_NUM_THREADS"] for e in environments] == ["1", "1", "1"]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environments] == ["", "", ""]


def test_a_trial_gets_no_more_threads_than_it_asks_for(tmp_path, monkeypatch):
    threads = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    monkeypatch.setattr(
        "sspo_cli.sweep.machine.command_of", lambda trial, *_: threads.append(trial.options.threads) or ["true"]
    )
    Machine(1, []).start(Trial("a", {}, RunOptions(threads=2)), tmp_path).wait()
    assert threads == [2]


def test_fewer_threads_than_asked_for_are_announced(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    four = [Trial("a", {}, RunOptions()), Trial("b", {}, RunOptions(threads=4))]
    assert Machine(1, []).note(four) is None
    assert Machine(2, []).note(four) == (
        "threads = 4 is lowered to 2, the cores of this machine for each process of a trial"
    )


def test_a_slot_is_free_once_however_often_its_trial_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr("sspo_cli.sweep.machine.command_of", lambda *_: ["true"])
    machine = Machine(1, [])
    ended = machine.start(trials("a")[0], tmp_path)
    ended.wait()
    assert [ended.poll(), ended.poll()] == [0, 0]
    assert machine.start(trials("b")[0], tmp_path) is not None
    assert machine.start(trials("c")[0], tmp_path) is None


@pytest.mark.parametrize(("devices", "slot"), [(["cpu", "cpu"], "slot 1"), (["cpu", "auto"], "GPU 4")])
def test_trials_that_want_no_gpu_take_none(tmp_path, monkeypatch, devices, slot):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    monkeypatch.setattr("sspo_cli.sweep.machine.command_of", lambda *_: ["true"])
    of_devices = [Trial(f"{n}", {}, RunOptions(device=device)) for n, device in enumerate(devices)]
    with place_for(of_devices, 1, 1, None) as place:
        started = place.start(of_devices[0], tmp_path)
        assert started.slot == slot
        started.wait()


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


def test_a_trial_reads_nothing_is_apart_from_the_terminal_and_its_log_keeps_every_attempt(tmp_path):
    script = (
        "import os, sys; print(os.read(0, 9) == b'', os.getsid(0) == os.getpid(), sys.argv[1], flush=True)\n"
        "sys.exit(sys.argv[1])"  # on standard error
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


def test_the_gpus_are_those_that_are_visible(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert visible_gpus() == ["2", "3"]
    for none in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert visible_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == ["0", "1"]
    driver.write_text("#!/bin/sh\necho has failed\nexit 9\n")
    assert visible_gpus() == []
    driver.unlink()
    assert visible_gpus() == []
