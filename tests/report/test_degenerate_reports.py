"""Reports of runs without differences, and of forked and extended runs."""

import json
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import evaluation, validation, write_bare_model, write_run
from written_reports import Report

from sspo_cli.errors import UserError
from sspo_cli.report import write_report
from sspo_cli.report.choices import against_best_and_baseline


def test_equal_results_have_no_best_one() -> None:
    def roles(**scores: float) -> list[tuple[str, str, str]]:
        results = list(scores)
        return against_best_and_baseline(results, scores.__getitem__, lambda name: "" if name == "base" else name)

    assert roles(base=0, sspo=0) == [("base", "sspo", "best")]
    assert {role for *_, role in roles(base=0, a=0, b=0)} == {"tied for best"}
    assert roles(a=0.3, b=0.1 + 0.2)[0][2] == "tied for best"  # 0.1 + 0.2 differs from 0.3 by rounding only
    assert roles(grpo=2, gspo=2, sspo=3) == [
        ("gspo", "sspo", "best"),
        ("gspo", "grpo", "tied for strongest baseline"),
        ("sspo", "grpo", "tied for strongest baseline"),
    ]
    assert roles(grpo=2, gspo=1, sspo=2)[0] == ("gspo", "grpo", "tied for best, strongest baseline")


def test_nothing_is_marked_and_no_mark_explained_if_all_is_zero(tmp_path: Path) -> None:
    for gate in ("atanlog", "gumbel"):
        rows = [evaluation(0, 0), evaluation(12, 0)]
        write_run(tmp_path / gate, f"objective.gate={gate}", evaluations=rows, whole=True)
    report = Report(tmp_path, tmp_path / "out")
    assert {row["mark"] for row in report.rows("table1")} == {""}
    assert not any("The best cell is bold" in note for note in report.notes("table1"))
    assert {row["role"] for row in report.rows("paired")} == {"tied for best"}
    assert "(best" not in report.text


def test_equal_configurations_are_said_to_be_equal_and_unfinished_ones_are_not_said_to_be_shown(tmp_path: Path) -> None:
    for tau in (0.1, 0.2):
        rows = [evaluation(12, 90), validation(12, 40)]
        write_run(tmp_path / f"{tau}", f"objective.tau_neg={tau}", evaluations=rows)
        write_run(tmp_path / f"grpo-{tau}", "objective.method=grpo", f"objective.eps_low={tau}", last=2, state="failed")
    report = Report(tmp_path, tmp_path / "out")
    assert "is shown for its mean validation Pass@1 of 40.0 %, as the first of 2 equal ones; not shown:" in report.text
    assert "configurations are shown" not in report.text


def test_a_failed_run_changes_no_table_but_that_of_all_runs(tmp_path: Path) -> None:
    overlap = {"task": "gsm8k", "benchmark": "math500", "rows": 2, "of": 3, "problems": 1}
    write_run(tmp_path / "good", "objective.tau_neg=0.1")
    bad = write_run(tmp_path / "bad", "objective.tau_neg=0.7", last=2, state="failed", reason="x")
    config = json.loads((bad / "config.json").read_text())
    data = {"problems": 9, "fingerprint": "f", "overlaps": [overlap], "left_out": None}
    (bad / "config.json").write_text(json.dumps({**config, "data": data}))
    report = Report(tmp_path, tmp_path / "out")
    assert not (report.out / "configurations.csv").exists()  # one finished configuration leaves nothing to choose
    assert not any("math500" in note for note in report.notes("table1"))
    assert len(report.rows("runs")) == 2


def set_config(run: Path, **content: Any) -> None:
    file = run / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **content}))


def test_forked_and_extended_runs_are_named_as_such(tmp_path: Path) -> None:
    fork = {"run": "runs/first", "step": 8, "optimizer": True, "fingerprint": "f"}
    runs = [write_run(tmp_path / f"forked-{seed}", f"seed={seed}", f"fork={json.dumps(fork)}") for seed in (0, 1)]
    earlier = {"run": "runs/zeroth", "step": 4, "optimizer": False}
    origin = {**fork, "origin": earlier, "extended": [{"after": 6, "steps": [6, 9]}]}
    for run in runs:
        set_config(run, origin=origin)
    set_config(write_run(tmp_path / "longer", "cold_start.steps=7"), extended=[{"after": 5, "steps": [5, 12]}])
    write_run(tmp_path / "plain", "cold_start.steps=7")
    report = Report(tmp_path, tmp_path / "out")
    forked = (
        "`forked-0`, `forked-1`: each is a fork of `first` at step 8 with its optimizer (`first` is a fork of `zeroth` at step 4 "
        "with a new optimizer and was extended after step 6 from 6 to 9 steps)."
    )
    for table in ("table1", "runs"):
        assert forked in report.notes(table)
        assert "`longer` was extended after step 5 from 5 to 12 steps." in report.notes(table)
        assert not any(note.startswith("`plain`") for note in report.notes(table))
    (base,) = (note for note in report.notes("table1") if note.startswith("base:"))
    assert base.endswith("after the cold start (7 supervised steps) or at the checkpoint that a run was forked from.")


def test_a_damaged_origin_is_left_out_by_name(tmp_path: Path) -> None:
    write_run(tmp_path / "good")
    set_config(write_run(tmp_path / "bad", "seed=1"), origin={"run": "x", "step": "four"})
    assert "`origin.step` = 'four'" in Report(tmp_path, tmp_path / "out").text


def test_a_report_is_not_written_into_the_folder_of_a_measured_model(tmp_path: Path) -> None:
    model = write_bare_model(tmp_path / "m", "org/M", [evaluation(0, 7)])
    before = sorted(model.rglob("*"))
    for out in (model, model / "eval", model / "new"):
        with pytest.raises(UserError, match=r"m holds the evaluations of a model; choose another --out"):
            write_report([tmp_path], out)
    assert sorted(model.rglob("*")) == before
