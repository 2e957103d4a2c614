"""The scheduler of a sweep and the places where trials run, without a trial's long work."""

import json
import os
from collections import defaultdict
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from sspo_cli.config import RunOptions
from sspo_cli.errors import UserError
from sspo_cli.sweep import run_sweep
from sspo_cli.sweep.grid import Trial
from sspo_cli.sweep.machine import Machine, visible_gpus
from sspo_cli.sweep.view import TrialsView
from sspo_cli.tracking.files import append_jsonl, last_jsonl_rows
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


def test_a_failed_trial_is_tried_again_after_the_others(tmp_path, capsys):
    place = Scripted(2, {"a": [1, 0], "b": [0], "c": [0]})
    run_sweep(trials("a", "b", "c"), tmp_path, place, retries=1)
    assert place.order == ["a", "b", "c", "a"]
    assert place.most == 2
    assert capsys.readouterr().out.splitlines()[-1] == "finished      a (3 of 3 finished)"


def test_a_trial_that_goes_on_failing_is_named_after_its_last_try(tmp_path):
    place = Scripted(1, {"a": [1, -9, 1], "b": [0]})
    with pytest.raises(UserError, match=r"^1 of 2 trials failed: a; their output is in .*<trial>.log$"):
        run_sweep(trials("a", "b"), tmp_path, place, retries=2)
    assert place.order == ["a", "b", "a", "a"]


def test_without_retries_a_trial_fails_once(tmp_path):
    place = Scripted(1, {"a": [1, 0]})
    with pytest.raises(UserError, match="1 of 1 trials failed"):
        run_sweep(trials("a"), tmp_path, place, retries=0)


def test_a_second_sweep_over_the_folder_is_told(tmp_path):
    class Sweeping(Scripted):
        def start(self, trial, folder):
            with pytest.raises(UserError, match="is being run by another process"):
                run_sweep(trials("a"), tmp_path, self, retries=0)
            return super().start(trial, folder)

    place = Sweeping(1, {"a": [0]})
    run_sweep(trials("a"), tmp_path, place, retries=0)
    assert place.order == ["a"]


def test_a_trial_that_was_begun_with_other_options_is_told(tmp_path):
    with RunFolder.create(tmp_path / "a", RunOptions(threads=2, steps=5), []):
        pass
    place = Scripted(1, {"a": [0]})
    with pytest.raises(
        UserError, match=r"a was begun with other options \(steps: 5 -> 160\); give the sweep another --name"
    ):
        run_sweep(trials("a"), tmp_path, place, retries=0)
    assert place.order == []


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
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

    def command(trial: Trial, folder: Path) -> list[str]:
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


def test_without_a_gpu_trials_share_the_cores_and_see_no_change_of_devices(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(2)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    environments = started_with(tmp_path, monkeypatch, Machine(3, visible_gpus()), ["a", "b", "c"])
    assert [e["OMP_NUM_THREADS"] for e in environments] == ["1", "1", "1"]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environments] == ["", "", ""]


def test_the_gpus_are_those_that_are_visible(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert visible_gpus() == ["2", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert visible_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == ["0", "1"]
    driver.unlink()
    assert visible_gpus() == []


def test_the_last_rows_of_a_long_file_are_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert last_jsonl_rows(path, 3) == []
    for step in range(50):
        append_jsonl(path, {"step": step, "padding": "x" * 3000})
    with path.open("ab") as file:
        file.write(b'{"step": 50, "pad')
    assert [row["step"] for row in last_jsonl_rows(path, 3)] == [47, 48, 49]
    assert [row["step"] for row in last_jsonl_rows(path, 100)] == list(range(50))


def test_the_view_of_a_terminal_shows_state_step_reward_and_time_left(tmp_path):
    (tmp_path / "a").mkdir()
    for step in range(1, 5):
        append_jsonl(tmp_path / "a" / "metrics.jsonl", {"step": step, "reward/mean": 0.5 * step, "time/step": 2.0})
    console = Console(file=StringIO(), force_terminal=True, width=100, height=12)
    with TrialsView(trials("a", "b", "c"), tmp_path, console) as view:
        view.started("a", "GPU 1")
        view.ended("c", "failed")
        with console.capture() as captured:
            console.print(view.table())
    lines = captured.get().splitlines()
    assert "1 running, 1 failed, 1 waiting" in lines[0]
    row = next(line for line in lines if "running" in line and "GPU 1" in line)
    assert all(text in row for text in ("4/160", "2.00", "0:05:12"))  # 156 steps of 2 seconds


def test_the_view_says_how_long_the_whole_sweep_goes_on(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr("sspo_cli.sweep.view.time.monotonic", lambda: now)

    def step(name: str, number: int) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        append_jsonl(tmp_path / name / "metrics.jsonl", {"step": number})

    step("a", 60)  # before this process
    console = Console(file=(said := StringIO()), width=200)
    with TrialsView(trials("a", "b", "c"), tmp_path, console) as view:
        view.started("a", "slot 1")
        now += 50.0
        step("a", 80)
        view.started("b", "slot 2")  # 20 steps in 50 seconds, and 80 + 160 + 160 to do
        step("a", 160)
        view.ended("a", "finished")  # 100 steps in 50 seconds, and 160 + 160 to do
        view.ended("b", "failed")
        view.ended("c", "finished")
    left = [line.rpartition("(")[2].removesuffix(")") for line in said.getvalue().splitlines()[1:]]
    assert left == [
        "0 of 3 finished",
        "0 of 3 finished, about 0:16:40 left",
        "1 of 3 finished, about 0:02:40 left",
        "1 of 3 finished, about 0:01:20 left",
        "2 of 3 finished",
    ]


def test_a_view_with_little_room_says_what_it_leaves_out(tmp_path):
    console = Console(file=StringIO(), force_terminal=True, width=80, height=10)
    with TrialsView(trials(*"abcdefgh"), tmp_path, console) as view, console.capture() as captured:
        console.print(view.table())
    assert "and 4 more" in captured.get()
