"""The slots, GPUs and cores of the trials on one machine."""

import json
import os
from collections import defaultdict
from pathlib import Path

import pytest

from sspo_cli.config import RunOptions, load_config
from sspo_cli.errors import UserError
from sspo_cli.sweep import machine_for, place_for
from sspo_cli.sweep.grid import Trial
from sspo_cli.sweep.machine import Machine, visible_gpus


def trials(*names: str) -> list[Trial]:
    return [Trial(name, {}, RunOptions(threads=8)) for name in names]


def started_with(tmp_path: Path, monkeypatch, machine: Machine, names: list[str]) -> list[dict[str, str]]:
    """Start the named trials at once, and return the environments of those that find a slot.

    The trials end when the file `end` appears.
    """
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
    assert on == {"0": 2, "GPU-5f": 2}  # the fifth trial found no slot
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


def test_trials_that_run_at_the_same_time_do_not_share_a_vllm_server(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    vllm = {"server": "http://me:secret@node:8000", "exchange": str(tmp_path)}
    on_server = [Trial(name, {}, load_config([], [f"rollout.vllm={json.dumps(vllm)}"])) for name in "ab"]
    with pytest.raises(
        UserError, match=r"2 trials sample on the vLLM server http://\*\*\*@node:8000, .* one trial at a time"
    ):
        machine_for(on_server, 1, 2)
    assert machine_for(on_server, 1, 4).slots == 1
    assert machine_for(on_server[:1], 1, 2).slots == 2
