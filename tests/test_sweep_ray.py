"""Trials on a real Ray cluster: two nodes' worth of raylets on this machine."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from test_sweep import SWEEP, states, sweep

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    nodes = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**nodes, "include_dashboard": False})
    cluster.add_node(**nodes)
    yield cluster.address
    cluster.shutdown()


def learned(run: Path) -> list[dict[str, float]]:
    """What a run's metrics say, but for times."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


@pytest.mark.slow
def test_a_sweep_on_ray_outlives_a_killed_worker_and_learns_the_same(tmp_path, cluster):
    text = SWEEP.replace("steps: 4", "steps: 40").replace("seeds: [0, 1]", "seeds: [0]")
    process = sweep(tmp_path, "--ray", cluster, text=text)
    folder = tmp_path / "small"
    while not (begun := sorted(folder.glob("*/metrics.jsonl"))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    killed = begun[0].parent
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


def test_a_trial_that_no_node_can_hold_is_told_before_the_start(tmp_path, cluster):
    process = sweep(tmp_path, "--ray", cluster, "-s", "threads=4")
    said, _ = process.communicate()
    assert process.returncode == 1
    assert said.splitlines()[-1] == (
        "sspo: a trial takes 4 CPUs, and no node of the Ray cluster has as much; the nodes have 1 CPUs, 1 CPUs; "
        "lower `threads` in the sweep's options"
    )
    assert not (tmp_path / "small").exists()


def test_a_cluster_that_is_not_there_is_told(tmp_path):
    process = sweep(tmp_path, "--ray", "127.0.0.1:1")
    said, _ = process.communicate()
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith("sspo: no Ray cluster can be reached at 127.0.0.1:1")
    assert not (tmp_path / "small").exists()
