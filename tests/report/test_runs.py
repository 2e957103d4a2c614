import json
from pathlib import Path

import pytest
from synthetic_runs import write_run

from sspo_cli.errors import UserError
from sspo_cli.report.runs import collect, find_runs
from sspo_cli.tracking.run_folder import RunFolder


def test_runs_are_found_below_a_folder_and_nothing_inside_a_run_is_one(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "sweep" / name) for name in ("a", "b")]
    model = runs[0] / "checkpoints" / "step-12"
    model.mkdir()
    for folder in (model, tmp_path / "cold-starts"):
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text('{"model_type": "qwen2"}')
    (model / "status.json").write_text("{}")
    assert find_runs([tmp_path]) == runs
    assert find_runs([runs[1], tmp_path / "sweep", runs[1]]) == [runs[1], runs[0]]  # each once


def test_a_group_differs_in_nothing_but_the_seed(tmp_path: Path) -> None:
    own = ("model.tiny.layers=3", "model.tiny.hidden_size=64", "optimizer.learning_rate=1e-3")
    write_run(tmp_path / "a1", *own, "seed=1", "threads=2", "checkpoint.every=5")
    write_run(tmp_path / "a0", *own)
    write_run(tmp_path / "b", *own, "objective.tau_pos=0.5", "optimizer.learning_rate=1e-4")
    write_run(tmp_path / "c", *own, "objective.method=grpo")
    write_run(tmp_path / "d", "objective.method=grpo", "model.name=Qwen/Qwen3-8B")
    groups = collect([tmp_path]).groups
    tiny, large = "tiny model (3 layers of 64), arithmetic", "Qwen3-8B, arithmetic"
    assert [(g.setting, g.label, [run.path.name for run in g.runs]) for g in groups] == [
        (large, "GRPO", ["d"]),
        (tiny, "GRPO", ["c"]),
        (tiny, "SSPO atanlog (tau_pos 0.2, optimizer.learning_rate 0.001)", ["a0", "a1"]),
        (tiny, "SSPO atanlog (tau_pos 0.5, optimizer.learning_rate 0.0001)", ["b"]),
    ]


def test_of_two_runs_with_the_same_seed_the_finished_one_counts_and_the_other_is_named(tmp_path: Path) -> None:
    write_run(tmp_path / "a", last=3, state="interrupted")
    write_run(tmp_path / "b")
    write_run(tmp_path / "c", last=5, state="failed")
    collection = collect([tmp_path])
    assert [run.path.name for run in collection.runs] == ["b"]
    left_out = "\n".join(collection.left_out)
    assert f"`{tmp_path}/a`: the same options and seed as `{tmp_path}/b`" in left_out
    assert f"`{tmp_path}/c`: the same options and seed as `{tmp_path}/b`" in left_out


def test_a_run_that_no_process_writes_was_killed(tmp_path: Path) -> None:
    write_run(tmp_path / "a", last=3, state="running")
    assert collect([tmp_path]).runs[0].state == "killed"
    with RunFolder.resume(tmp_path / "a"):
        pass
    other_process = RunFolder(tmp_path / "a")
    other_process._acquire()
    assert collect([tmp_path]).runs[0].state == "running"
    other_process.close()


def test_a_damaged_run_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    damaged = write_run(tmp_path / "b", "seed=1")
    (damaged / "config.json").write_text("{")
    collection = collect([tmp_path])
    assert [run.path.name for run in collection.runs] == ["a"]
    assert collection.left_out == [f"`{damaged}`: {damaged}/config.json is not valid JSON"]


def test_without_a_run_there_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no readable runs in {tmp_path}, nowhere"):
        collect([tmp_path, Path("nowhere")])
    damaged = write_run(tmp_path / "a")
    (damaged / "config.json").write_text(json.dumps({"options": {"seeed": 1}}))
    with pytest.raises(UserError, match=r"no readable runs in .*did you mean `seed`"):
        collect([tmp_path])
