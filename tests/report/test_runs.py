import json
from pathlib import Path

import pytest
from synthetic_runs import evaluation, validation, write_bare_model, write_run

from sspo_cli.errors import UserError
from sspo_cli.named_runs import find_runs
from sspo_cli.report import write_report
from sspo_cli.report.collect import collect
from sspo_cli.report.missing import missing
from sspo_cli.report.records import answers
from sspo_cli.tracking.run_folder import RunFolder


def test_runs_are_found_below_a_folder_and_nothing_inside_a_run_is_one(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "sweep" / name) for name in ("a", "b")]
    model = runs[0] / "checkpoints" / "step-12"
    model.mkdir()
    for folder in (model, tmp_path / "cold-starts"):
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text('{"model_type": "qwen2"}')
    (model / "status.json").write_text("{}")
    bare = write_bare_model(tmp_path / "z", "org/name", [evaluation(0, 5)])
    assert find_runs([tmp_path]) == [*runs, bare]
    assert find_runs([runs[1], tmp_path / "sweep", runs[1]]) == [runs[1], runs[0]]  # each run appears once


def test_a_group_differs_only_in_the_seed(tmp_path: Path) -> None:
    own = ("model.tiny.layers=3", "model.tiny.hidden_size=64", "optimizer.learning_rate=1e-3")
    write_run(tmp_path / "a1", *own, "seed=1", "threads=2", "checkpoint.every=5")
    write_run(tmp_path / "a0", *own)
    write_run(tmp_path / "b", *own, "objective.tau_pos=0.5", "optimizer.learning_rate=1e-4")
    write_run(tmp_path / "c", *own, "objective.method=grpo")
    write_run(tmp_path / "d", "objective.method=grpo", "model.name=Qwen/Qwen3-8B", "tasks=[arithmetic]")
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


def test_settings_differ_in_what_makes_the_model_that_rl_starts_from(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", "cold_start.steps=20")
    write_run(tmp_path / "c", "cold_start.steps=20", "objective.method=grpo", "evaluation.every=3")
    tiny = "tiny model (3 layers of 64), arithmetic"
    assert [(group.setting, group.label) for group in collect([tmp_path]).groups] == [
        (f"{tiny} (cold_start.steps 20)", "GRPO"),
        (f"{tiny} (cold_start.steps 20)", "SSPO atanlog"),
        (f"{tiny} (cold_start.steps 700)", "SSPO atanlog"),
    ]


def test_what_a_run_kept_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    old, whole = write_run(tmp_path / "a"), write_run(tmp_path / "b", "seed=1", whole=True)
    run, run_whole = collect([old, whole]).runs
    assert (run.weights(), answers(run, "arithmetic"), run.seconds) == ([], [], None)
    assert [row["step"] for row in run_whole.weights()] == list(range(1, 13))
    assert len(answers(run_whole, "arithmetic")) == 2 * 200
    assert run_whole.seconds == 6.0
    assert run_whole.started is not None
    assert run_whole.started.tzinfo is not None
    (whole / "weights.jsonl").write_text("{\n{}\n")
    with pytest.raises(UserError, match=r"weights.jsonl, line 1 is not valid JSON"):
        run_whole.weights()


def test_the_best_step_is_the_earlier_of_equal_ones_and_of_one_measurement(tmp_path: Path) -> None:
    rows = [validation(0, 10), validation(8, 60), validation(4, 60), validation(12, 50)]
    write_run(tmp_path / "a", evaluations=[*rows, validation(12, 9, n=10)])
    write_run(tmp_path / "b", "seed=1", evaluations=[*rows], state="interrupted", last=8)
    write_run(tmp_path / "c", "seed=2")
    a, b, c = collect([tmp_path]).runs
    assert (a.selected_step("best"), a.selected_step("last")) == (4, 12)
    assert (b.selected_step("best"), b.selected_step("last")) == (None, None)
    assert (c.selected_step("best"), c.selected_step("last")) == (None, 12)


def test_a_damaged_model_folder_is_named(tmp_path: Path) -> None:
    write_bare_model(tmp_path / "a", "org/name", [evaluation(0, 5)])
    write_bare_model(tmp_path / "b", "org/other", [])
    (tmp_path / "b" / "model.json").write_text("[]")
    collection = collect([tmp_path])
    assert [(bare.name, bare.evaluations[0]["samples"]) for bare in collection.bare_models] == [("name", 1)]
    (sentence,) = collection.left_out
    assert sentence.startswith(f"`{tmp_path}/b`: {tmp_path}/b/model.json does not have the format that sspo writes")


def test_nothing_is_missing_from_whole_runs(tmp_path: Path) -> None:
    for method in ("grpo", "sspo"):
        for seed in (0, 1):
            write_run(tmp_path / f"{method}{seed}", f"objective.method={method}", f"seed={seed}")
    for seed in (0, 1):  # another configuration with the same seeds
        write_run(tmp_path / f"rival{seed}", "objective.tau_pos=0.7", f"seed={seed}")
    assert missing(collect([tmp_path])) == []


def test_what_is_missing_is_reported_by_name(tmp_path: Path) -> None:
    math500 = [evaluation(0, 3, 30, "math500"), evaluation(12, 9, 30, "math500")]
    good = [evaluation(0, 60), evaluation(12, 120)]
    held_out = [validation(0, 5), validation(12, 9)]
    write_run(tmp_path / "good", evaluations=[*good, *math500, *held_out])
    write_run(tmp_path / "bad", "seed=1", last=4, state="failed", reason="5 bad steps in a row", evaluations=[])
    write_run(tmp_path / "dead", "seed=2", last=7, state="running", evaluations=[evaluation(0, 61)])
    write_run(tmp_path / "lazy", "seed=3", evaluations=[])
    write_run(tmp_path / "short", "seed=4", evaluations=[*good, *held_out])
    write_run(tmp_path / "early", "seed=5", evaluations=good[:1])
    write_run(
        tmp_path / "grpo", "objective.method=grpo", "evaluation.every=3", evaluations=[*good, *math500, *held_out]
    )
    write_run(tmp_path / "grpo4", "objective.method=grpo", "seed=4", evaluations=[*good, *math500])
    write_run(
        tmp_path / "other", "model.name=other", "tasks=[arithmetic]", evaluations=[evaluation(12, 50, n=100), *held_out]
    )
    write_bare_model(tmp_path / "model", "org/name", [])
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.json").write_text("{")
    (tmp_path / "torn" / "status.json").write_text("{}")
    tiny = "tiny model (3 layers of 64), arithmetic"
    expected = {
        f"`{tmp_path}/bad` (seed 1) is failed at step 4 of 12: 5 bad steps in a row; its evaluations are not counted.",
        f"`{tmp_path}/dead` (seed 2) is killed at step 7 of 12; its evaluations are not counted.",
        f"`{tmp_path}/lazy` (seed 3) is finished, but has no evaluation.",
        f"`{tmp_path}/early` (seed 5) was not evaluated after its last step; "
        f"`sspo eval {tmp_path}/early --checkpoint last` evaluates it.",
        f"`{tmp_path}/short` (seed 4) was not measured on math500 at the step that the tables show.",
        f"`{tmp_path}/model` holds no evaluation of name.",
        "No run of other, arithmetic was evaluated before its first step, so there is no base and no Δ Avg.",
        f"The base of {tiny} is the mean over runs that do not agree on arithmetic before their first step: 30.0 to 30.5 %.",
        f"GRPO in {tiny} has no finished run of seeds 3, 5, which other configurations have.",
        f"The seeds of GRPO in {tiny} are evaluated differently: `{tmp_path}/grpo` (seed 0): evaluation.every 3; "
        f"`{tmp_path}/grpo4` (seed 4): evaluation.every 40.",
        f"arithmetic was measured in several ways, which have separate columns: (n 100) in `{tmp_path}/other`; "
        f"(n 200) in `{tmp_path}/grpo` and 5 more.",
        f"`{tmp_path}/torn`: {tmp_path}/torn/config.json is not valid JSON; left out.",
    }
    sentences = missing(collect([tmp_path]))
    assert set(sentences) == expected
    assert len(sentences) == len(expected)
    no_validation = (
        f"`{tmp_path}/grpo4` (seed 4) has no validation to choose a checkpoint by, so it is in no table; train with "
        "`evaluation.validation`, or report with `--select last`."
    )
    assert no_validation in missing(collect([tmp_path], "best"))


def test_best_checkpoints_are_refused_if_no_run_has_validation_problems(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    with pytest.raises(UserError, match=r"^--select best chooses checkpoints by held-out problems, but no run has any"):
        write_report([tmp_path / "a"], tmp_path / "report", select="best")
    assert not (tmp_path / "report").exists()


def test_seeds_that_are_of_different_configurations_are_reported(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", "seed=1", "optimizer.learning_rate=1e-3")
    (message,) = (sentence for sentence in missing(collect([tmp_path])) if "differ in more" in sentence)
    assert message == (
        "The runs of SSPO atanlog differ in more than the seed, and are not averaged: "
        f"`{tmp_path}/a` (seed 0): optimizer.learning_rate 0.0002; `{tmp_path}/b` (seed 1): optimizer.learning_rate 0.001."
    )


def test_a_best_step_without_a_test_is_reported(tmp_path: Path) -> None:
    write_run(tmp_path / "a", evaluations=[evaluation(0, 9), evaluation(12, 20), validation(4, 60), validation(12, 50)])
    assert missing(collect([tmp_path], "best")) == [
        f"`{tmp_path}/a` (seed 0) was not evaluated at step 4, its best by validation; "
        f"`sspo eval {tmp_path}/a --checkpoint best` evaluates it."
    ]
