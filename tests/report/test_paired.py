from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import answer, evaluation, write_bare_model, write_run

from sspo_cli.report.collect import collect
from sspo_cli.report.table import Table
from sspo_cli.report.tables import tables
from sspo_cli.tracking.files import read_jsonl, write_jsonl_atomic


def paired(path: Path) -> Table:
    (table,) = (table for table in tables(collect([path])) if table.name == "paired")
    return table


def solve(run: Path, row: dict[str, Any], solved: list[set[int]]) -> None:
    """Write the run's answers; `solved` holds the set of solved problems of each sample."""
    rows = [answer(row, n, n in of_sample, sample) for sample, of_sample in enumerate(solved) for n in range(row["n"])]
    write_jsonl_atomic(run / "eval" / f"{row['benchmark']}.jsonl", rows)


def test_a_single_seed_is_compared_by_mcnemar(tmp_path: Path) -> None:
    row = evaluation(12, 6, n=10)
    solve(write_run(tmp_path / "grpo", "objective.method=grpo", evaluations=[row]), row, [{0, 1, 2, 3, 4, 9}])
    better = evaluation(12, 8, n=10)
    solve(write_run(tmp_path / "sspo", evaluations=[better]), better, [{0, 1, 2, 3, 4, 5, 6, 7}])
    table = paired(tmp_path)
    (compared,) = table.frame.to_dict("records")
    assert (compared["configuration"], compared["against"], compared["role"]) == (
        "SSPO atanlog",
        "GRPO",
        "strongest baseline",
    )
    assert (compared["value"], compared["value_against"], compared["n"]) == (80, 60, 10)
    assert compared["difference"] == pytest.approx(20)
    assert -30 <= compared["low"] < 0 < 20 < compared["high"] <= 60
    assert compared["p"] == compared["p_holm"] == pytest.approx(2 * (1 + 4) / 2**4)  # SSPO alone solves 3, GRPO alone 1
    assert compared["test"].startswith("McNemar")


def test_seeds_and_samples_are_averaged_within_a_problem(tmp_path: Path) -> None:
    """Compare two seeds of GRPO with two of SSPO, one sample each: SSPO gains three problems in one seed each."""
    solved = {"grpo": [{0, 1}, {0, 1}], "sspo": [{0, 1, 2, 3}, {0, 1, 4}]}
    for method, seeds in solved.items():
        for seed, which in enumerate(seeds):
            row = evaluation(12, len(which), n=8)
            run = write_run(
                tmp_path / f"{method}{seed}", f"objective.method={method}", f"seed={seed}", evaluations=[row]
            )
            solve(run, row, [which])
    (compared,) = paired(tmp_path).frame.to_dict("records")
    assert compared["difference"] == pytest.approx(100 * 1.5 / 8)  # three problems gain a half each
    assert compared["p"] == pytest.approx(0.25)  # all three have one sign: 2 of the 8 flips
    assert (compared["seeds"], compared["seeds_against"]) == (2, 2)
    assert "sign-flip" in compared["test"]


def test_several_samples_too(tmp_path: Path) -> None:
    row, better = (evaluation(12, correct, n=4, samples=2, temperature=1.0) for correct in (3, 6))
    grpo = write_run(tmp_path / "grpo", "objective.method=grpo", evaluations=[row])
    solve(grpo, row, [{0, 1}, {0}])
    solve(write_run(tmp_path / "sspo", evaluations=[better]), better, [{0, 1, 2}, {0, 2, 3}])
    (compared,) = paired(tmp_path).frame.to_dict("records")
    # The differences are 0, 0, 2 and 1 halves. Of the four sign flips of the last two, two are as far from 0.
    assert compared["p"] == pytest.approx(0.5)
    assert compared["difference"] == pytest.approx(37.5)


def test_each_line_meets_the_best_and_the_strongest_baseline_once(tmp_path: Path) -> None:
    configurations = (("grpo", "clip", 100), ("gspo", "clip", 120), ("sspo", "atanlog", 150), ("sspo", "siglog", 140))
    for method, gate, correct in configurations:
        rows = [evaluation(0, 60), evaluation(12, correct)]
        overrides = (f"objective.method={method}", f"objective.gate={gate}")
        write_run(tmp_path / f"{method}-{gate}", *overrides, evaluations=rows, whole=True)
    write_bare_model(tmp_path / "model", "other", [evaluation(0, 10)])  # another model is another setting
    frame = paired(tmp_path).frame
    assert list(zip(frame["configuration"], frame["against"], frame["role"], strict=True)) == [
        ("base", "SSPO atanlog", "best"),
        ("GRPO", "SSPO atanlog", "best"),
        ("SSPO siglog", "SSPO atanlog", "best"),
        ("base", "GSPO", "strongest baseline"),
        ("GRPO", "GSPO", "strongest baseline"),
        ("SSPO atanlog", "GSPO", "strongest baseline"),
        ("SSPO siglog", "GSPO", "strongest baseline"),
    ]
    assert frame["difference"].tolist() == pytest.approx([-45, -25, -5, -30, -10, 15, 10])
    assert (frame["p_holm"] >= frame["p"]).all()


def test_what_cannot_be_compared_is_reported(tmp_path: Path) -> None:
    for name, overrides, correct in (
        ("grpo", ["objective.method=grpo"], 100),
        ("gspo", ["objective.method=gspo"], 110),
        ("sspo", [], 150),
        ("old", ["objective.gate=siglog"], 140),
    ):
        write_run(tmp_path / name, *overrides, evaluations=[evaluation(12, correct)], whole=name != "old")
    answers = tmp_path / "gspo" / "eval" / "arithmetic.jsonl"
    write_jsonl_atomic(answers, [{**row, "gold": "another"} for row in read_jsonl(answers)])
    table = paired(tmp_path)
    assert len(table.frame) == 1
    notes = "\n".join(table.notes)
    setting = "tiny model (3 layers of 64), arithmetic"
    assert (
        f"SSPO siglog in {setting} is not compared on arithmetic: `{tmp_path}/old/eval/arithmetic.jsonl` does not hold 1 "
        in notes
    )
    assert f"GRPO and GSPO in {setting} are not compared on arithmetic: they answered different problems." in notes


def test_rows_of_older_versions_are_understood(tmp_path: Path) -> None:
    for name, overrides, correct in (("grpo", ["objective.method=grpo"], 100), ("sspo", [], 150)):
        write_run(tmp_path / name, *overrides, evaluations=[evaluation(12, correct)], whole=True)
        answers = tmp_path / name / "eval" / "arithmetic.jsonl"
        new = ("samples", "temperature", "max_new_tokens", "template", "sample", "finish")
        write_jsonl_atomic(answers, [{k: v for k, v in row.items() if k not in new} for row in read_jsonl(answers)])
    assert paired(tmp_path).frame["difference"].tolist() == pytest.approx([25])


def test_answers_of_other_measurements_are_not_mixed_in(tmp_path: Path) -> None:
    rows = [evaluation(12, 100), evaluation(12, 300, samples=2, temperature=1.0), evaluation(6, 10)]
    write_run(tmp_path / "grpo", "objective.method=grpo", evaluations=rows, whole=True)
    write_run(tmp_path / "sspo", evaluations=[evaluation(12, 150), *rows[1:]], whole=True)
    frame = paired(tmp_path).frame
    assert frame["difference"].tolist() == pytest.approx([25, 0])
