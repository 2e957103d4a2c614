"""Trials on a real Ray cluster of two nodes, both on this machine."""

import contextlib
import ipaddress
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from test_sweep import SWEEP, states, sweep

from sspo_cli.interruption import Interruption
from sspo_cli.tracking.files import last_jsonl_rows

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
from sspo_cli.sweep import on_ray  # noqa: E402

ENDLESS = 10_000  # more steps than any test waits for
TWO_ENDLESS = SWEEP.replace("steps: 4", f"steps: {ENDLESS}").replace("seeds: [0, 1]", "seeds: [0]")


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    nodes = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**nodes, "include_dashboard": False})
    cluster.add_node(**nodes)
    yield cluster
    cluster.shutdown()


def learned(run: Path) -> list[dict[str, float]]:
    """Return a run's metrics without times."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def wait_for_trials(process: subprocess.Popen, folder: Path, count: int, after: int = 0) -> list[Path]:
    """Wait until `count` trials have made an optimizer step after step `after`, and return their run folders."""
    while True:
        rows = {path.parent: last_jsonl_rows(path, 1) for path in sorted(folder.glob("*/metrics.jsonl"))}
        if len(begun := [trial for trial, last in rows.items() if last and last[0]["step"] > after]) >= count:
            return begun
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def pid_of(trial: Path) -> int:
    return json.loads((trial / "status.json").read_text())["pid"]


def processes_of(trials: list[Path]) -> list[psutil.Process]:
    return [psutil.Process(pid_of(trial)) for trial in trials]


def assert_saved(trials: list[Path]) -> None:
    """Check that each trial was stopped long before its end, at a step whose checkpoint it has."""
    for trial in trials:
        status = json.loads((trial / "status.json").read_text())
        assert status["state"] == "interrupted"
        assert 0 < status["step"] < ENDLESS
        assert (trial / "checkpoints" / f"step-{status['step']}").is_dir()


@pytest.mark.slow
def test_a_sweep_on_ray_outlives_a_killed_worker_and_learns_the_same(tmp_path, cluster):
    text = SWEEP.replace("steps: 4", "steps: 40").replace("seeds: [0, 1]", "seeds: [0]")
    process = sweep(tmp_path, "--ray", cluster.address, text=text)
    folder = tmp_path / "small"
    killed, *_ = wait_for_trials(process, folder, 1)
    trial = json.loads((killed / "status.json").read_text())["pid"]
    worker = int(Path(f"/proc/{trial}/stat").read_text().rpartition(")")[2].split()[1])
    assert "ray::" in Path(f"/proc/{worker}/cmdline").read_text()
    os.kill(worker, signal.SIGKILL)

    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert f"to be retried {killed.name}" in said
    assert list(states(tmp_path).values()) == ["finished", "finished"]

    alone = tmp_path / "alone"
    alone.mkdir()
    process = sweep(alone, text=text)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert learned(alone / "small" / killed.name) == learned(killed)


def test_what_is_left_of_two_nodes_does_not_hold_a_trial():
    nodes = [{"CPU": 64.0, "GPU": 8.0}, {"CPU": 64.0, "GPU": 8.0}, {"CPU": 64.0}]
    assert [on_ray._room({"CPU": 5.0, "GPU": 5.0}, node) for node in nodes] == [1, 1, 0]
    assert [on_ray._room({"CPU": 8.0, "GPU": 0.0}, node) for node in nodes] == [8, 8, 8]
    assert on_ray._room({"CPU": 1.0, "GPU": 0.3333}, nodes[0]) == 24  # three trials share a GPU


def test_a_trial_that_no_node_can_hold_is_reported_before_the_start(tmp_path, cluster):
    process = sweep(tmp_path, "--ray", cluster.address, "-s", "threads=4")
    said, _ = process.communicate()
    assert process.returncode == 1
    assert said.splitlines()[-1] == (
        "sspo: a trial needs 4 CPUs, but no node of the Ray cluster has that much; the nodes have 1 CPUs, 1 CPUs; "
        "lower `threads` in the sweep's options"
    )
    assert not (tmp_path / "small").exists()


def test_a_cluster_that_is_not_there_is_reported(tmp_path):
    process = sweep(tmp_path, "--ray", "127.0.0.1:1")
    said, _ = process.communicate()
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith("sspo: no Ray cluster can be reached at 127.0.0.1:1")
    assert not (tmp_path / "small").exists()


@pytest.mark.long
def test_a_signal_to_the_sweep_stops_its_trials_on_ray_and_the_same_command_continues_them(tmp_path, cluster):
    folder, reached = tmp_path / "small", 0
    for number in Interruption.SIGNALS:
        process = sweep(tmp_path, "--ray", cluster.address, text=TWO_ENDLESS)
        trials = wait_for_trials(process, folder, 2, after=reached)
        running = processes_of(trials)
        process.send_signal(number)
        said, _ = process.communicate()
        assert process.returncode == 130, said
        end = "sspo: stopped; the trials have saved their state, and the same command continues them: `sspo sweep -c "
        assert said.splitlines()[-1].startswith(end)
        assert psutil.wait_procs(running, timeout=60)[1] == []
        assert_saved(trials)
        steps = [[row["step"] for row in learned(trial)] for trial in trials]
        assert steps == [list(range(1, len(each) + 1)) for each in steps]
        reached = max(map(len, steps))


@pytest.mark.long
def test_a_trial_of_two_ranks_is_on_one_node_is_retried_and_stopped_and_the_same_command_continues_it(
    tmp_path, cluster
):
    text = TWO_ENDLESS.replace("  - options: {objective.method: grpo}\n", "")
    process = sweep(tmp_path, "--ray", cluster.address, "--nproc", "2", text=text)
    said, _ = process.communicate()
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith("sspo: a trial needs 2 CPUs, but no node of the Ray cluster has that much")

    node = cluster.add_node(num_cpus=2, object_store_memory=80 << 20)
    reached, folder = 0, tmp_path / "small"
    for _ in range(2):
        process = sweep(tmp_path, "--ray", cluster.address, "--nproc", "2", "-s", "checkpoint.every=2", text=text)
        (trial,) = wait_for_trials(process, folder, 1, after=reached + 2)
        first = psutil.Process(pid_of(trial))
        ranks = first.parent().children()
        assert [rank.environ()["RANK"] for rank in sorted(ranks, key=lambda rank: rank.pid)] == ["0", "1"]
        ranks[-1].kill()
        assert psutil.wait_procs(ranks, timeout=60)[1] == []
        wait_for_trials(process, folder, 1, after=learned(trial)[-1]["step"])
        running = psutil.Process(pid_of(trial)).parent().children()
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate()
        assert process.returncode == 130, said
        assert f"to be retried {trial.name}" in said
        assert psutil.wait_procs(running, timeout=60)[1] == []
        assert_saved([trial])
        steps = [row["step"] for row in learned(trial)]
        assert steps == list(range(1, len(steps) + 1))
        reached = len(steps)
    about = json.loads((trial / "config.json").read_text())
    assert [about["ranks"], *(start["ranks"] for start in about["resumed"])] == [2] * 4
    assert "it was ended by SIGKILL" in trial.with_name(f"{trial.name}.log").read_text()
    cluster.remove_node(node)


@pytest.mark.long
def test_a_local_cluster_is_open_to_this_machine_alone_and_ends_with_the_sweep(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # a setting for another cluster has no effect
    process = sweep(tmp_path, "--ray", "local", text=TWO_ENDLESS)
    trials = wait_for_trials(process, tmp_path / "small", 1)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    listening = {
        (each.name(), connection.laddr)
        for each in family
        for connection in each.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN or not connection.raddr
    }
    assert {"gcs_server", "raylet"} <= {name for name, _ in listening}
    assert any(name.startswith("ray::") for name, _ in listening)  # the workers
    open_to_all = {
        (name, ip, port)
        for name, (ip, port) in listening
        if not ipaddress.ip_address(ip.removeprefix("::ffff:")).is_loopback
    }
    assert not open_to_all

    servers = [each for each in family if each.name() in ("gcs_server", "raylet")]
    assert all(server.environ()["RAY_AUTH_MODE"] == "token" for server in servers)
    (drawn,) = {server.environ()["RAY_AUTH_TOKEN"] for server in servers}
    assert len(drawn) == 64
    assert not any(drawn in argument for each in family for argument in each.cmdline())

    for each in family:  # also the cluster's processes, as when Slurm ends a job
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(each.pid) == os.getpgid(process.pid):
                each.terminate()
    said, _ = process.communicate()
    assert process.returncode == 130, said
    assert_saved(trials)
    assert psutil.wait_procs(family, timeout=60)[1] == []


@pytest.mark.long
def test_a_trial_of_a_lost_node_continues_elsewhere_and_without_any_node_it_is_named(tmp_path, cluster):
    """Two larger nodes, the only ones that can hold the trial, are killed in turn while it runs there."""
    larger = [cluster.add_node(num_cpus=2, object_store_memory=80 << 20) for _ in range(2)]
    raylets = {raylet.pid: raylet for node in larger for raylet in [node.all_processes["raylet"][0].process]}
    text = TWO_ENDLESS.replace("  - options: {objective.method: grpo}\n", "").replace(
        "options:\n", "options:\n  threads: 2\n", 1
    )
    process = sweep(tmp_path, "--ray", cluster.address, "--retries", "9", text=text)
    (trial,) = wait_for_trials(process, tmp_path / "small", 1)
    attempts = []
    for _ in larger:
        (running,) = processes_of([trial])
        attempts.append(running)
        (pid,) = raylets.keys() & {parent.pid for parent in running.parents()}
        raylet = raylets.pop(pid)
        raylet.kill()
        raylet.wait()  # workers end when the raylet is gone, and a zombie is not gone
        while raylets and pid_of(trial) == running.pid:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
    said, _ = process.communicate()
    assert process.returncode == 1, said
    assert f"to be retried {trial.name}" in said
    assert said.splitlines()[-1].startswith(
        "sspo: no remaining node of the Ray cluster has the 2 CPUs that a trial needs; 1 of 1 trial did not finish: "
        f"{trial.name}; the same command continues them"
    )
    assert psutil.wait_procs(attempts, timeout=60)[1] == []
