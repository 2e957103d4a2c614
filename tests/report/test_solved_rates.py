"""Benchmarks of episodes in the tables: parts as columns, the paper's figures, and what is not measured."""

from pathlib import Path

import pytest
from synthetic_runs import evaluation, write_run
from written_reports import Report

LIMITS = {"turns": 5, "proposals": 2, "max_tokens": 4096, "max_new_tokens": 512}
PARTS = {  # the second part is in the format of older versions
    "gsm8k": {"n": 48, "correct": 12, "pass_at_1": 0.25, "low": 0.149, "high": 0.389, "truncated": 12},
    "math": {"n": 152, "correct": 38, "pass_at_1": 0.25, "low": 0.188, "high": 0.324},
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    runs: Path = tmp_path_factory.mktemp("runs")
    for model in ("Qwen3-8B", "Qwen3-14B"):
        for method in ("grpo", "sspo"):
            rows = [
                evaluation(step, correct, benchmark="codeact", **LIMITS, episodes={"turns": 3.0})
                for step, correct in ((0, 40), (12, 60 if method == "sspo" else 50))
            ]
            rows += [
                evaluation(12, 50, benchmark="mint", **LIMITS, parts=PARTS),
                evaluation(12, 9, 60, "wtq", **LIMITS),
            ]
            overrides = [f"model.name=Qwen/{model}", "tasks=[{name: codeact, path: x}]", "evaluation.benchmarks=[]"]
            write_run(runs / f"{model}-{method}", f"objective.method={method}", *overrides, evaluations=rows)
    return Report(runs, runs / "report", paper=True)


def test_parts_of_a_benchmark_are_columns_with_their_own_n_and_interval(report: Report):
    rows = [row for row in report.rows("table1") if row["model"] == "Qwen3-8B" and row["method"] == "sspo"]
    columns = {row["column"]: row for row in rows}
    assert set(columns) >= {"codeact", "mint", "mint/gsm8k", "mint/math", "wtq"}
    part = columns["mint/gsm8k"]
    assert (int(part["n"]), float(part["value"])) == (48, 25.0)
    assert float(part["low"]) == pytest.approx(14.9, abs=0.1)
    assert (part["turns"], part["proposals"], part["max_tokens"]) == ("5", "2", "4096")
    assert [columns[name]["truncated"] for name in ("mint/gsm8k", "mint/math")] == ["25.0", ""]


def test_the_paper_s_figures_stand_next_to_codeact_alone(report: Report):
    printed = {
        (row["model"], row["method"]): float(row["paper"])
        for row in report.rows("table2")
        if row["column"] == "codeact" and row["paper"]
    }
    expected = {"Qwen3-8B": {"": 18.4, "grpo": 19.3, "sspo": 27.0}, "Qwen3-14B": {"": 21.8, "grpo": 26.5, "sspo": 29.6}}
    assert printed == {(model, method): value for model, of in expected.items() for method, value in of.items()}
    assert not any(row["paper"] for row in report.rows("table2") if row["column"].startswith(("mint", "wtq")))


def test_the_notes_say_what_the_numbers_are_and_what_is_not_measured(report: Report):
    notes = " ".join(report.notes("table2"))
    assert "accepted within at most 5 turns and 2 proposals, of at most 512 new tokens each and 4096 together" in notes
    assert "so the two are not comparable" in notes
    assert "HumanEval, MBPP, HotpotQA and ALFWorld of MINT, and APPS of CodeActInstruct" in notes
